"""Metrics encoded by hand are what protobuf reads."""

from __future__ import annotations

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.config.metric_groups import MetricGroup
from cri_shim.rpc.translate_metrics import BASE_LABELS, descriptor, pod_entry
from cri_shim.sandbox.cri_metrics.families import CONTAINER_FAMILIES, POD_FAMILIES, Family, Kind
from cri_shim.sandbox.cri_metrics.readings import ContainerReading, PodReading, Sample
from tests.unit.sandbox.cri_metrics.readings import container_reading, pod_reading

SECOND = 1_000_000_000


def read(reading: PodReading) -> api.PodSandboxMetrics:
    entry = pod_entry(reading, POD_FAMILIES, CONTAINER_FAMILIES)
    (found,) = api.ListPodSandboxMetricsResponse.FromString(entry).pod_metrics
    (streamed,) = api.StreamPodSandboxMetricsResponse.FromString(entry).pod_sandbox_metrics
    assert found == streamed
    return found


def test_an_entry_has_what_was_read() -> None:
    reading = container_reading()
    found = read(pod_reading(reading, reading))
    assert found.pod_sandbox_id == "5" * 64
    assert [each.container_id for each in found.container_metrics] == ["c" * 64] * 2
    expected = [
        api.Metric(
            name=family.name,
            timestamp=100 * SECOND,
            metric_type=api.MetricType.Value(family.kind),
            label_values=["c" * 64, "busybox:1", "default", "web", "app", *sample.labels],
            value=api.UInt64Value(value=sample.value),
        )
        for family in CONTAINER_FAMILIES
        for sample in family.samples(reading)
    ]
    assert list(found.container_metrics[0].metrics) == expected
    assert {each.name for each in found.metrics} == {family.name for family in POD_FAMILIES}
    for each in found.metrics:
        assert each.label_values == ["5" * 64, "", "default", "web", "POD", "eth0"]
        assert each.timestamp == 101 * SECOND


@pytest.mark.parametrize(
    ("value", "told"),
    [
        *((number, number) for number in (0, 1, 127, 128, 16_383, 16_384, 1 << 63, (1 << 64) - 1)),
        (-5, 0),
        (1 << 70, (1 << 64) - 1),
    ],
)
def test_a_value_is_told_whatever_its_size(value: int, told: int) -> None:
    family: Family[ContainerReading] = Family(
        "x", MetricGroup.CPU, Kind.GAUGE, "x", lambda _: [Sample(value)]
    )
    entry = pod_entry(pod_reading(container_reading()), [], [family])
    (pod,) = api.ListPodSandboxMetricsResponse.FromString(entry).pod_metrics
    (metric,) = pod.container_metrics[0].metrics
    assert metric.HasField("value")
    assert metric.value.value == told


def test_a_descriptor_has_the_labels_of_its_samples() -> None:
    found = [descriptor(each) for each in CONTAINER_FAMILIES] + [
        descriptor(each) for each in POD_FAMILIES
    ]
    assert len({each.name for each in found}) == 56
    assert all(each.help.endswith(".") for each in found)
    keys = {each.name: list(each.label_keys) for each in found}
    assert keys["container_processes"] == list(BASE_LABELS)
    assert keys["container_network_receive_bytes_total"] == [*BASE_LABELS, "interface"]
