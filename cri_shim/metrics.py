"""The daemon's Prometheus metrics: all collectors, on a registry of their own.

Rules:
- Names begin with `cri_shim_`, durations are in seconds, and labels have few values: never an ID, a name or a path.
- Modules use the collectors directly.
- Numbers of objects are computed at scrape time (`watch_objects`), so that no counter can drift.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cri_shim import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# The `_created` series of prometheus-client would double the page without use.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
CONTENT_TYPE = CONTENT_TYPE_LATEST

CALL_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0),
)
"""From a List to a stop with a long grace period or a pull."""

PULL_BUCKETS_S = (
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    320.0,
    640.0,
    1280.0,
)
"""From an image whose layers are present to one of many gigabytes over a slow network."""

COMMAND_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5.0, 10.0, 30.0)
"""Dense from 5 to 100 ms, the usual durations of runtime commands and CNI plugins, and up to the default timeout."""

STALL_BUCKETS_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From unnoticeable stalls to those after which the watchdog kills the daemon."""

GRPC_REQUESTS = Counter(
    "cri_shim_grpc_requests_total",
    "gRPC calls that ended, by the code they were answered with.",
    ["service", "method", "code"],
    registry=REGISTRY,
)
GRPC_REQUEST_SECONDS = Histogram(
    "cri_shim_grpc_request_seconds",
    "How long gRPC calls took.",
    ["service", "method"],
    buckets=CALL_BUCKETS_S,
    registry=REGISTRY,
)
GRPC_REQUESTS_IN_FLIGHT = Gauge(
    "cri_shim_grpc_requests_in_flight",
    "gRPC calls going on now.",
    registry=REGISTRY,
)
OCI_COMMAND_SECONDS = Histogram(
    "cri_shim_oci_command_seconds",
    "How long the commands of OCI runtimes took.",
    ["handler", "command"],
    buckets=COMMAND_BUCKETS_S,
    registry=REGISTRY,
)
OCI_COMMAND_FAILURES = Counter(
    "cri_shim_oci_command_failures_total",
    "Commands of OCI runtimes that failed or were killed at their deadline.",
    ["handler", "command"],
    registry=REGISTRY,
)
CNI_OPERATION_SECONDS = Histogram(
    "cri_shim_cni_operation_seconds",
    "How long CNI operations took, a whole network list each.",
    ["operation"],
    buckets=COMMAND_BUCKETS_S,
    registry=REGISTRY,
)
CNI_OPERATION_FAILURES = Counter(
    "cri_shim_cni_operation_failures_total",
    "CNI operations that failed or were killed at their deadline.",
    ["operation"],
    registry=REGISTRY,
)
IMAGE_PULL_SECONDS = Histogram(
    "cri_shim_image_pull_seconds",
    "How long pulls that succeeded took.",
    buckets=PULL_BUCKETS_S,
    registry=REGISTRY,
)
IMAGE_PULL_BYTES = Counter(
    "cri_shim_image_pull_bytes_total",
    "Bytes of layers that registries sent, what had to be sent twice included.",
    registry=REGISTRY,
)
IMAGE_PULL_FAILURES = Counter(
    "cri_shim_image_pull_failures_total",
    "Pulls that failed, by why.",
    ["reason"],
    registry=REGISTRY,
)
IMAGE_LAYER_REUSE = Counter(
    "cri_shim_image_layer_reuse_total",
    "Layers of pulled images that were here already.",
    registry=REGISTRY,
)
CONTAINER_EXITS = Counter(
    "cri_shim_container_exits_total",
    "Containers that ended, by the reason in their status.",
    ["reason"],
    registry=REGISTRY,
)
CONTAINER_OOMS = Counter(
    "cri_shim_container_ooms_total",
    "Containers that the kernel killed for want of memory.",
    registry=REGISTRY,
)
CONTAINER_EVENT_OVERFLOWS = Counter(
    "cri_shim_container_event_overflows_total",
    "Streams of container events that were ended because their client did not read.",
    registry=REGISTRY,
)
CONTAINER_EVENTS_TOO_LARGE = Counter(
    "cri_shim_container_events_too_large_total",
    "Container events that were not sent, since the pod's statuses did not fit into a message.",
    registry=REGISTRY,
)
STREAM_SESSIONS = Gauge(
    "cri_shim_stream_sessions",
    "Streaming sessions going on now.",
    ["kind", "protocol"],
    registry=REGISTRY,
)
STREAM_BYTES = Counter(
    "cri_shim_stream_bytes_total",
    "Bytes that streaming sessions carried, `in` from clients and `out` to them, without the protocols' own.",
    ["kind", "direction"],
    registry=REGISTRY,
)
RECOVERED_OBJECTS = Counter(
    "cri_shim_recovered_objects_total",
    "Records found at the start of the daemon, by what became of them.",
    ["kind", "outcome"],
    registry=REGISTRY,
)
LOOP_STALL_SECONDS = Histogram(
    "cri_shim_loop_stall_seconds",
    "Turns of an event loop that took longer than 10 ms: by the wall clock, and as CPU time of its thread.",
    ["process", "clock"],
    buckets=STALL_BUCKETS_S,
    registry=REGISTRY,
)
LOOP_LONGEST_STALL_SECONDS = Gauge(
    "cri_shim_loop_longest_stall_seconds",
    "The longest turn of an event loop since the daemon was ready, by either clock.",
    ["process", "clock"],
    registry=REGISTRY,
)
BUILD_INFO = Info("cri_shim_build", "What is running.", registry=REGISTRY)
BUILD_INFO.info(
    {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
    }
)
ProcessCollector(registry=REGISTRY)


class _Objects(Collector):
    """Numbers of objects, computed at scrape time."""

    def __init__(self) -> None:
        self.sandboxes: Callable[[], Mapping[str, int]] | None = None
        self.containers: Callable[[], Mapping[str, int]] | None = None
        self.images: Callable[[], int] | None = None
        self.cni_pending_deletes: Callable[[], int] | None = None
        self.slow_operations: Callable[[], Mapping[str, int]] | None = None

    def describe(self) -> Iterable[GaugeMetricFamily]:
        # Called at registration, when the stores do not exist yet. Without it the registry would call `collect`.
        return [
            _family("sandboxes", "state"),
            _family("containers", "state"),
            _family("images"),
            _cni_pending_deletes(),
            _slow_operations(),
        ]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, count in (("sandboxes", self.sandboxes), ("containers", self.containers)):
            family = _family(name, "state")
            for state, number in (count() if count else {}).items():
                family.add_metric([state], number)
            yield family
        family = _family("images")
        if self.images:
            family.add_metric([], self.images())
        yield family
        family = _cni_pending_deletes()
        if self.cni_pending_deletes:
            family.add_metric([], self.cni_pending_deletes())
        yield family
        family = _slow_operations()
        for step, number in (self.slow_operations() if self.slow_operations else {}).items():
            family.add_metric([step], number)
        yield family


def _family(name: str, *labels: str) -> GaugeMetricFamily:
    text = f"How many {name} there are" + (", by state." if labels else ".")
    return GaugeMetricFamily(f"cri_shim_{name}", text, labels=labels)


def _cni_pending_deletes() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "cri_shim_cni_pending_deletes", "Network attachments whose DEL failed and is tried again."
    )


def _slow_operations() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "cri_shim_slow_operations",
        "Operations under way for more than a minute, by the step at which they stand.",
        labels=["step"],
    )


_objects = _Objects()
REGISTRY.register(_objects)


def watch_objects(
    *,
    sandboxes: Callable[[], Mapping[str, int]] | None = None,
    containers: Callable[[], Mapping[str, int]] | None = None,
    images: Callable[[], int] | None = None,
    cni_pending_deletes: Callable[[], int] | None = None,
    slow_operations: Callable[[], Mapping[str, int]] | None = None,
) -> None:
    """Set the functions that count objects. Functions that are not given stay as they were.

    They are called at each scrape, on the loop's thread, and must not block. Mappings are state -> count. They should
    include states without objects, so that a series does not vanish when it falls to 0.
    """
    _objects.sandboxes = sandboxes or _objects.sandboxes
    _objects.containers = containers or _objects.containers
    _objects.images = images or _objects.images
    _objects.cni_pending_deletes = cni_pending_deletes or _objects.cni_pending_deletes
    _objects.slow_operations = slow_operations or _objects.slow_operations


_longest_stalls_s: dict[tuple[str, str], float] = {}


def count_stall(process: str, wall_s: float, cpu_s: float) -> None:
    """Count a long turn of the event loop (`event_loop`) of `process`: `daemon` or `streaming`."""
    for clock, seconds in (("wall", wall_s), ("cpu", cpu_s)):
        LOOP_STALL_SECONDS.labels(process, clock).observe(seconds)
        longest_s = max(seconds, _longest_stalls_s.get((process, clock), 0.0))
        _longest_stalls_s[process, clock] = longest_s
        LOOP_LONGEST_STALL_SECONDS.labels(process, clock).set(longest_s)


for _process in ("daemon", "streaming"):  # create all series at the start, with the value 0
    for _clock in ("wall", "cpu"):
        LOOP_STALL_SECONDS.labels(_process, _clock)
        LOOP_LONGEST_STALL_SECONDS.labels(_process, _clock)


def exposition() -> bytes:
    """The metrics page, of type `CONTENT_TYPE`."""
    return generate_latest(REGISTRY)
