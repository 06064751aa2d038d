"""The table of CRI's metrics: name, kind, labels, help, and the function that computes the samples. Pure.

Names, kinds and meanings are those of cAdvisor, whose metrics a kubelet replaces by these.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cri_shim.config.metric_groups import MetricGroup
from cri_shim.sandbox.cri_metrics.readings import ContainerReading, PodReading
from cri_shim.sandbox.cri_metrics.samples import (
    by_device,
    cpu_usage,
    device_usage,
    huge_pages,
    limit,
    memory_failures,
    number,
    of_file_system,
    of_interface,
    of_processes,
    one,
    or_zero,
    quota,
    reservation,
    stalled,
    ulimits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cri_shim.host.interface_counters import InterfaceCounters
    from cri_shim.sandbox.cri_metrics.readings import Sample
    from cri_shim.sandbox.cri_metrics.samples import OfContainer

ReadingT = TypeVar("ReadingT", PodReading, ContainerReading)
_NS: Final = 1_000_000_000
_DEFAULT_PERIOD_US: Final = 100_000
_DEFAULT_SHARES: Final = 1024
"""The kernel's default, for a container whose request does not set a value."""


class Kind(StrEnum):
    """CRI's MetricType."""

    COUNTER = "COUNTER"
    GAUGE = "GAUGE"


@dataclass(frozen=True, slots=True)
class Family(Generic[ReadingT]):
    """A metric."""

    name: str
    group: MetricGroup
    kind: Kind
    help: str
    samples: Callable[[ReadingT], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    """Labels that follow those that every metric has."""


_CPU, _MEM = MetricGroup.CPU, MetricGroup.MEMORY
_IO, _DISK, _PSI = MetricGroup.DISK_IO, MetricGroup.DISK, MetricGroup.PRESSURE
_PROC, _SPEC, _STATE = MetricGroup.PROCESS, MetricGroup.SPEC, MetricGroup.STATE
_DEVICE: Final = ("device",)


def _counter(
    name: str, group: MetricGroup, text: str, samples: OfContainer, labels: tuple[str, ...] = ()
) -> Family[ContainerReading]:
    return Family(f"container_{name}", group, Kind.COUNTER, text, samples, labels)


def _gauge(
    name: str, group: MetricGroup, text: str, samples: OfContainer, labels: tuple[str, ...] = ()
) -> Family[ContainerReading]:
    return Family(f"container_{name}", group, Kind.GAUGE, text, samples, labels)


def _of_pod(name: str, text: str, value: Callable[[InterfaceCounters], int]) -> Family[PodReading]:
    name = f"container_network_{name}"
    return Family(
        name, MetricGroup.NETWORK, Kind.COUNTER, text, of_interface(value), ("interface",)
    )


CONTAINER_FAMILIES: Final = (
    _counter(
        "blkio_device_usage_total",
        _IO,
        "Bytes read from and written to a block device.",
        device_usage,
        ("device", "major", "minor", "operation"),
    ),
    _counter(
        "cpu_cfs_periods_total",
        _CPU,
        "Enforcement periods of the CPU quota that have passed.",
        number("nr_periods"),
    ),
    _counter(
        "cpu_cfs_throttled_periods_total",
        _CPU,
        "Enforcement periods in which the container was throttled.",
        number("nr_throttled"),
    ),
    _counter(
        "cpu_cfs_throttled_seconds_total",
        _CPU,
        "Seconds for which the container was throttled.",
        number("throttled_ns", _NS),
    ),
    _counter(
        "cpu_system_seconds_total",
        _CPU,
        "Seconds of CPU time in the kernel.",
        number("system_ns", _NS),
    ),
    _counter("cpu_usage_seconds_total", _CPU, "Seconds of CPU time.", cpu_usage, ("cpu",)),
    _counter(
        "cpu_user_seconds_total", _CPU, "Seconds of CPU time in programs.", number("user_ns", _NS)
    ),
    _gauge(
        "file_descriptors",
        _PROC,
        "Open files of the container's processes; at most the first 4096 are counted.",
        of_processes(lambda p: p.open_files),
    ),
    _gauge(
        "fs_inodes_free",
        _DISK,
        "Free inodes of the writable layer's file system.",
        of_file_system(lambda r: r.file_system.free_inodes),
        _DEVICE,
    ),
    _gauge(
        "fs_inodes_total",
        _DISK,
        "Inodes of the writable layer's file system.",
        of_file_system(lambda r: r.file_system.inodes),
        _DEVICE,
    ),
    _gauge(
        "fs_limit_bytes",
        _DISK,
        "Size of the writable layer's file system in bytes.",
        of_file_system(lambda r: r.file_system.size_bytes),
        _DEVICE,
    ),
    _counter(
        "fs_reads_bytes_total",
        _IO,
        "Bytes read from a block device.",
        by_device(lambda io: io.read_bytes),
        _DEVICE,
    ),
    _counter(
        "fs_reads_total", _IO, "Reads from a block device.", by_device(lambda io: io.reads), _DEVICE
    ),
    _gauge(
        "fs_usage_bytes",
        _DISK,
        "Bytes that the writable layer takes.",
        of_file_system(lambda r: r.layer_bytes),
        _DEVICE,
    ),
    _counter(
        "fs_writes_bytes_total",
        _IO,
        "Bytes written to a block device.",
        by_device(lambda io: io.written_bytes),
        _DEVICE,
    ),
    _counter(
        "fs_writes_total",
        _IO,
        "Writes to a block device.",
        by_device(lambda io: io.writes),
        _DEVICE,
    ),
    _gauge(
        "hugetlb_max_usage_bytes",
        MetricGroup.HUGETLB,
        "Most bytes of huge pages that were in use at once; 0 on cgroup v2.",
        huge_pages(most=True),
        ("pagesize",),
    ),
    _gauge(
        "hugetlb_usage_bytes",
        MetricGroup.HUGETLB,
        "Bytes of huge pages in use.",
        huge_pages(most=False),
        ("pagesize",),
    ),
    _gauge(
        "last_seen",
        _STATE,
        "When the container was last seen, in seconds since the epoch.",
        one(lambda r: r.usage.read_at_ns // _NS),
    ),
    _gauge("memory_cache", _MEM, "Bytes of page cache.", number("file")),
    _counter(
        "memory_failcnt",
        _MEM,
        "How often the memory limit was hit; 0 on cgroup v2.",
        or_zero("failcnt"),
    ),
    _counter(
        "memory_failures_total", _MEM, "Page faults.", memory_failures, ("failure_type", "scope")
    ),
    _gauge("memory_kernel_usage", _MEM, "Bytes of kernel memory.", number("kernel")),
    _gauge(
        "memory_mapped_file",
        _MEM,
        "Bytes of files that are mapped into memory.",
        number("file_mapped"),
    ),
    _gauge(
        "memory_max_usage_bytes",
        _MEM,
        "Most bytes of memory that were in use at once.",
        number("peak"),
    ),
    _gauge("memory_rss", _MEM, "Bytes of anonymous memory.", one(lambda r: r.usage.rss_bytes)),
    _gauge(
        "memory_swap", _MEM, "Bytes of swap in use.", one(lambda r: r.usage.swap_usage_bytes or 0)
    ),
    _gauge(
        "memory_usage_bytes",
        _MEM,
        "Bytes of memory in use, page cache included.",
        one(lambda r: r.usage.memory_usage_bytes),
    ),
    _gauge(
        "memory_working_set_bytes",
        _MEM,
        "Bytes of memory in use that the kernel cannot reclaim at once.",
        one(lambda r: r.usage.working_set_bytes),
    ),
    _counter(
        "oom_events_total",
        MetricGroup.OOM,
        "Processes that the kernel has killed for lack of memory.",
        number("oom_kill"),
    ),
    _counter(
        "pressure_cpu_stalled_seconds_total",
        _PSI,
        "Seconds in which all tasks waited for CPU.",
        stalled(lambda r: r.usage.cpu_pressure, full=True),
    ),
    _counter(
        "pressure_cpu_waiting_seconds_total",
        _PSI,
        "Seconds in which some task waited for CPU.",
        stalled(lambda r: r.usage.cpu_pressure, full=False),
    ),
    _counter(
        "pressure_io_stalled_seconds_total",
        _PSI,
        "Seconds in which all tasks waited for I/O.",
        stalled(lambda r: r.usage.io_pressure, full=True),
    ),
    _counter(
        "pressure_io_waiting_seconds_total",
        _PSI,
        "Seconds in which some task waited for I/O.",
        stalled(lambda r: r.usage.io_pressure, full=False),
    ),
    _counter(
        "pressure_memory_stalled_seconds_total",
        _PSI,
        "Seconds in which all tasks waited for memory.",
        stalled(lambda r: r.usage.memory_pressure, full=True),
    ),
    _counter(
        "pressure_memory_waiting_seconds_total",
        _PSI,
        "Seconds in which some task waited for memory.",
        stalled(lambda r: r.usage.memory_pressure, full=False),
    ),
    _gauge("processes", _PROC, "Processes of the container.", of_processes(lambda p: p.processes)),
    _gauge(
        "sockets",
        _PROC,
        "Open sockets of the container's processes, among the first 4096 open files.",
        of_processes(lambda p: p.sockets),
    ),
    _gauge(
        "spec_cpu_period",
        _SPEC,
        "Enforcement period of the CPU quota in microseconds.",
        one(lambda r: r.resources.cpu_period or _DEFAULT_PERIOD_US),
    ),
    _gauge(
        "spec_cpu_quota",
        _SPEC,
        "CPU quota per period in microseconds, where there is one.",
        one(quota),
    ),
    _gauge(
        "spec_cpu_shares",
        _SPEC,
        "CPU shares.",
        one(lambda r: r.resources.cpu_shares or _DEFAULT_SHARES),
    ),
    _gauge(
        "spec_memory_limit_bytes",
        _SPEC,
        "Memory limit in bytes; 0 for none.",
        one(lambda r: limit(r.resources.memory_limit_in_bytes)),
    ),
    _gauge(
        "spec_memory_reservation_limit_bytes",
        _SPEC,
        "Memory that the kernel leaves to the container, in bytes; 0 for none.",
        one(reservation),
    ),
    _gauge(
        "spec_memory_swap_limit_bytes",
        _SPEC,
        "Limit of memory and swap together in bytes; 0 for none.",
        one(lambda r: limit(r.resources.memory_swap_limit_in_bytes)),
    ),
    _gauge(
        "start_time_seconds",
        _STATE,
        "When the container was started, in seconds since the epoch.",
        one(lambda r: r.container.status.started_at_ns // _NS),
    ),
    _gauge("threads", _PROC, "Threads of the container.", one(lambda r: r.usage.pids_current)),
    _gauge("threads_max", _PROC, "Limit of threads; 0 for none.", or_zero("pids_max")),
    _gauge(
        "ulimits_soft", _PROC, "Soft limits of the container's first process.", ulimits, ("ulimit",)
    ),
)

POD_FAMILIES: Final = (
    _of_pod("receive_bytes_total", "Bytes received.", lambda i: i.received_bytes),
    _of_pod("receive_errors_total", "Errors while receiving.", lambda i: i.receive_errors),
    _of_pod(
        "receive_packets_dropped_total",
        "Received packets that were dropped.",
        lambda i: i.receive_drops,
    ),
    _of_pod("receive_packets_total", "Packets received.", lambda i: i.received_packets),
    _of_pod("transmit_bytes_total", "Bytes sent.", lambda i: i.sent_bytes),
    _of_pod("transmit_errors_total", "Errors while sending.", lambda i: i.send_errors),
    _of_pod(
        "transmit_packets_dropped_total",
        "Packets that were dropped before they were sent.",
        lambda i: i.send_drops,
    ),
    _of_pod("transmit_packets_total", "Packets sent.", lambda i: i.sent_packets),
)
