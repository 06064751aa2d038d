"""Computes the samples of CRI's metrics from the values of a pod or container. Pure.

A value that the node does not count has no sample. Three values are 0 if the kernel does not have them, as in cAdvisor:
failures to charge memory and the peak of huge pages on cgroup v2, and swap without swap accounting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.sandbox.cri_metrics.readings import ContainerReading, PodReading, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.host.cgroups.counters import DeviceIo
    from cri_shim.host.cgroups.pressure import Pressure
    from cri_shim.host.interface_counters import InterfaceCounters
    from cri_shim.host.process_counters import ProcessCounters

    OfContainer = Callable[[ContainerReading], list[Sample]]
    OfPod = Callable[[PodReading], list[Sample]]

_NS: Final = 1_000_000_000
_US: Final = 1_000_000
_UNLIMITED: Final = 1 << 62


def one(
    value: Callable[[ContainerReading], int | None],
) -> OfContainer:
    """A single sample without further labels; none for None."""

    def samples(reading: ContainerReading) -> list[Sample]:
        number = value(reading)
        return [] if number is None else [Sample(number)]

    return samples


def number(name: str, divisor: int = 1) -> OfContainer:
    """The counter of this name (`host.cgroups.counters`)."""

    def samples(reading: ContainerReading) -> list[Sample]:
        number = reading.counters.numbers.get(name)
        return [] if number is None else [Sample(number // divisor)]

    return samples


def or_zero(name: str) -> OfContainer:
    """As `number`, but 0 for what the node does not count."""
    return lambda reading: [Sample(reading.counters.numbers.get(name, 0))]


def cpu_usage(reading: ContainerReading) -> list[Sample]:
    """CPU time of all processors together."""
    usage_ns = reading.usage.cpu_usage_ns
    return [] if usage_ns is None else [Sample(usage_ns // _NS, ("total",))]


def memory_failures(reading: ContainerReading) -> list[Sample]:
    """Page faults of the container itself and of what is below it."""
    numbers, usage = reading.counters.numbers, reading.usage
    found = (
        (numbers.get("pgfault"), ("pgfault", "container")),
        (usage.page_faults, ("pgfault", "hierarchy")),
        (numbers.get("pgmajfault"), ("pgmajfault", "container")),
        (usage.major_page_faults, ("pgmajfault", "hierarchy")),
    )
    return [Sample(value, labels) for value, labels in found if value is not None]


def stalled(pressure: Callable[[ContainerReading], Pressure | None], *, full: bool) -> OfContainer:
    """Stall time: of all tasks if `full`, else of some."""

    def samples(reading: ContainerReading) -> list[Sample]:
        found = pressure(reading)
        stalls = None if found is None else found.full if full else found.some
        return [] if stalls is None else [Sample(stalls.total_us // _US)]

    return samples


def by_device(value: Callable[[DeviceIo], int]) -> OfContainer:
    """A sample per block device."""
    return lambda reading: [
        Sample(value(io), (reading.device_paths[numbers],))
        for numbers, io in reading.counters.devices.items()
    ]


def device_usage(reading: ContainerReading) -> list[Sample]:
    """Bytes per block device and direction."""
    return [
        Sample(amount, (reading.device_paths[major, minor], str(major), str(minor), operation))
        for (major, minor), io in reading.counters.devices.items()
        for operation, amount in (("read", io.read_bytes), ("write", io.written_bytes))
    ]


def of_file_system(
    value: Callable[[ContainerReading], int | None],
) -> OfContainer:
    """A single sample with the device of the writable layer's file system."""

    def samples(reading: ContainerReading) -> list[Sample]:
        number = value(reading)
        return [] if number is None else [Sample(number, (reading.file_system.device,))]

    return samples


def huge_pages(*, most: bool) -> OfContainer:
    """A sample per size: the most that were in use, or those in use."""
    return lambda reading: [
        Sample(each.most_bytes if most else each.used_bytes, (each.size,))
        for each in reading.counters.huge_pages
    ]


def limit(value: int) -> int:
    """A limit in bytes; 0 for none, which requests also write as -1 or as a very large number."""
    return value if 0 < value < _UNLIMITED else 0


def quota(reading: ContainerReading) -> int | None:
    """The CPU quota, if there is one."""
    quota = reading.resources.cpu_quota
    return quota if quota > 0 else None


def reservation(reading: ContainerReading) -> int | None:
    """The memory that the kernel leaves to the container."""
    kept = reading.counters.numbers.get("min")
    return None if kept is None else limit(kept)


def of_interface(
    value: Callable[[InterfaceCounters], int],
) -> OfPod:
    """A sample per network interface."""
    return lambda reading: [Sample(value(each), (each.name,)) for each in reading.interfaces]


def of_processes(value: Callable[[ProcessCounters], int]) -> OfContainer:
    """A single sample of the processes on this node's kernel."""
    return one(lambda reading: None if reading.processes is None else value(reading.processes))


def ulimits(reading: ContainerReading) -> list[Sample]:
    """The soft limits of the container's first process."""
    limit = reading.open_files_limit
    return [] if limit is None else [Sample(limit, ("max_open_files",))]
