"""What was read of pods and containers for their metrics, and the samples that a metric makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.host.block_devices import FileSystem
    from cri_shim.host.cgroups.counters import CgroupCounters
    from cri_shim.host.cgroups.usage import CgroupStats
    from cri_shim.host.interface_counters import InterfaceCounters
    from cri_shim.host.process_counters import ProcessCounters
    from cri_shim.sandbox.store.store import Container, Sandbox


class Sample(NamedTuple):
    """One value, with the labels that a metric has beside those of every metric."""

    value: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerReading:
    """One running container."""

    container: Container
    usage: CgroupStats
    counters: CgroupCounters
    processes: ProcessCounters | None
    """None for one with a kernel of its own, whose processes this node does not see."""
    open_files_limit: int | None
    """Of its first process."""
    resources: api.LinuxContainerResources
    file_system: FileSystem
    """Of all writable layers."""
    layer_bytes: int | None
    device_paths: Mapping[tuple[int, int], str]
    """By major and minor number; "" for a device without a name."""


@dataclass(frozen=True, slots=True)
class PodReading:
    """One ready pod, and those of its containers that run."""

    sandbox: Sandbox
    read_at_ns: int
    interfaces: Sequence[InterfaceCounters]
    containers: Sequence[ContainerReading]
