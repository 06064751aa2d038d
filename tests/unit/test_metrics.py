from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cri_shim import __version__, metrics

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nothing_watched() -> Iterator[None]:
    yield
    metrics.watch_objects(
        sandboxes=dict, containers=dict, images=lambda: 0, cni_pending_deletes=lambda: 0
    )


def samples() -> dict[str, float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        sample.name + "".join(f",{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


CONTRACT = {
    "cri_shim_grpc_requests_total": ("service", "method", "code"),
    "cri_shim_grpc_request_seconds": ("service", "method"),
    "cri_shim_grpc_requests_in_flight": (),
    "cri_shim_oci_command_seconds": ("handler", "command"),
    "cri_shim_oci_command_failures_total": ("handler", "command"),
    "cri_shim_cni_operation_seconds": ("operation",),
    "cri_shim_cni_operation_failures_total": ("operation",),
    "cri_shim_container_exits_total": ("reason",),
    "cri_shim_container_ooms_total": (),
    "cri_shim_container_event_overflows_total": (),
    "cri_shim_container_events_too_large_total": (),
    "cri_shim_recovered_objects_total": ("kind", "outcome"),
    "cri_shim_image_pull_seconds": (),
    "cri_shim_image_pull_bytes_total": (),
    "cri_shim_image_pull_failures_total": ("reason",),
    "cri_shim_image_layer_reuse_total": (),
    "cri_shim_loop_stall_seconds": ("process", "clock"),
    "cri_shim_loop_longest_stall_seconds": ("process", "clock"),
}

COLLECTORS = {
    "cri_shim_grpc_requests_total": metrics.GRPC_REQUESTS,
    "cri_shim_grpc_request_seconds": metrics.GRPC_REQUEST_SECONDS,
    "cri_shim_grpc_requests_in_flight": metrics.GRPC_REQUESTS_IN_FLIGHT,
    "cri_shim_oci_command_seconds": metrics.OCI_COMMAND_SECONDS,
    "cri_shim_oci_command_failures_total": metrics.OCI_COMMAND_FAILURES,
    "cri_shim_cni_operation_seconds": metrics.CNI_OPERATION_SECONDS,
    "cri_shim_cni_operation_failures_total": metrics.CNI_OPERATION_FAILURES,
    "cri_shim_container_exits_total": metrics.CONTAINER_EXITS,
    "cri_shim_container_ooms_total": metrics.CONTAINER_OOMS,
    "cri_shim_container_event_overflows_total": metrics.CONTAINER_EVENT_OVERFLOWS,
    "cri_shim_container_events_too_large_total": metrics.CONTAINER_EVENTS_TOO_LARGE,
    "cri_shim_recovered_objects_total": metrics.RECOVERED_OBJECTS,
    "cri_shim_image_pull_seconds": metrics.IMAGE_PULL_SECONDS,
    "cri_shim_image_pull_bytes_total": metrics.IMAGE_PULL_BYTES,
    "cri_shim_image_pull_failures_total": metrics.IMAGE_PULL_FAILURES,
    "cri_shim_image_layer_reuse_total": metrics.IMAGE_LAYER_REUSE,
    "cri_shim_loop_stall_seconds": metrics.LOOP_STALL_SECONDS,
    "cri_shim_loop_longest_stall_seconds": metrics.LOOP_LONGEST_STALL_SECONDS,
}


@pytest.mark.parametrize("name", CONTRACT)
def test_a_metric_has_the_name_and_labels_of_the_interface(name: str) -> None:
    page = metrics.exposition().decode()
    assert f"# HELP {name} " in page
    collector, labels = COLLECTORS[name], CONTRACT[name]
    if labels:
        collector.labels(**dict.fromkeys(labels, "x"))  # raises unless it has just these
        collector.remove(*("x" for _ in labels))
    else:
        [family] = collector.collect()
        assert not any(sample.labels.keys() - {"le"} for sample in family.samples)


def test_objects_are_counted_when_the_page_is_asked_for() -> None:
    running = 1
    metrics.watch_objects(
        sandboxes=lambda: {"ready": 2, "notready": 0},
        containers=lambda: {"running": running},
        images=lambda: 7,
        cni_pending_deletes=lambda: 5,
        slow_operations=lambda: {"runc start": 4},
    )
    running = 3
    found = samples()
    assert found["cri_shim_sandboxes,state=ready"] == 2
    assert found["cri_shim_sandboxes,state=notready"] == 0
    assert found["cri_shim_containers,state=running"] == 3
    assert found["cri_shim_images"] == 7
    assert found["cri_shim_cni_pending_deletes"] == 5
    assert found["cri_shim_slow_operations,step=runc start"] == 4


def test_watching_one_kind_leaves_the_others() -> None:
    metrics.watch_objects(images=lambda: 7)
    metrics.watch_objects(sandboxes=lambda: {"ready": 1})
    assert samples()["cri_shim_images"] == 7


def test_the_page_says_what_is_running_and_how_the_process_does() -> None:
    found = samples()
    assert any(
        name.startswith("cri_shim_build_info,") and f"version={__version__}" in name
        for name in found
    )
    assert found["process_open_fds"] > 0


def test_the_longest_stall_is_kept_by_process_and_clock() -> None:
    bucket = "cri_shim_loop_stall_seconds_bucket,clock=wall,le=0.25,process=streaming"
    longest = "cri_shim_loop_longest_stall_seconds,clock={},process={}"
    before = samples()
    metrics.count_stall("streaming", 1000.3, 1000.2)
    metrics.count_stall("streaming", 0.2, 0.01)
    found = samples()
    assert found[longest.format("wall", "streaming")] == 1000.3
    assert found[longest.format("cpu", "streaming")] == 1000.2
    daemon = longest.format("cpu", "daemon")
    assert found[daemon] == before[daemon]
    assert found[bucket] == before[bucket] + 1


def test_no_series_says_when_a_counter_was_made() -> None:
    metrics.CNI_OPERATION_SECONDS.labels(operation="add").observe(0.03)
    found = samples()
    assert found["cri_shim_cni_operation_seconds_count,operation=add"] >= 1
    assert not [name for name in found if "_created" in name]
