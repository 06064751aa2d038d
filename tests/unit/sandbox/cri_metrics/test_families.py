"""The table of metrics: what every row of it must be."""

from __future__ import annotations

from cri_shim.config.metric_groups import MetricGroup
from cri_shim.sandbox.cri_metrics.families import CONTAINER_FAMILIES, POD_FAMILIES, Kind
from tests.unit.sandbox.cri_metrics.readings import container_reading, pod_reading

GAUGES_OF_A_TOTAL = {"container_fs_inodes_total"}
COUNTERS_OF_ANOTHER_NAME = {"container_memory_failcnt"}


def test_there_is_each_metric_once() -> None:
    names = [family.name for family in (*CONTAINER_FAMILIES, *POD_FAMILIES)]
    assert len(set(names)) == len(names) == 56
    assert all(name.startswith("container_") for name in names)


def test_every_group_has_metrics() -> None:
    groups = {family.group for family in (*CONTAINER_FAMILIES, *POD_FAMILIES)}
    assert groups == {MetricGroup(name) for name in MetricGroup.__members__.values()}


def test_what_only_grows_is_a_counter() -> None:
    counters = {f.name for f in (*CONTAINER_FAMILIES, *POD_FAMILIES) if f.kind is Kind.COUNTER}
    totals = {f.name for f in (*CONTAINER_FAMILIES, *POD_FAMILIES) if f.name.endswith("_total")}
    assert counters == (totals - GAUGES_OF_A_TOTAL) | COUNTERS_OF_ANOTHER_NAME


def test_every_metric_is_explained_in_a_sentence() -> None:
    for family in (*CONTAINER_FAMILIES, *POD_FAMILIES):
        assert family.help[0].isupper(), family.name
        assert family.help.endswith("."), family.name


def test_a_sample_has_as_many_labels_as_its_metric() -> None:
    for of_container in CONTAINER_FAMILIES:
        for sample in of_container.samples(container_reading()):
            assert len(sample.labels) == len(of_container.labels), of_container.name
    for of_pod in POD_FAMILIES:
        for sample in of_pod.samples(pod_reading()):
            assert len(sample.labels) == len(of_pod.labels), of_pod.name
