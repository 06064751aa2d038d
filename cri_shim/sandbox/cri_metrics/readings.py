"""The values read of pods and containers, and the samples computed from them."""

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
    """A value with the labels of its metric, without those that every metric has."""

    value: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerReading:
    """The values of a running container."""

    container: Container
    usage: CgroupStats
    counters: CgroupCounters
    processes: ProcessCounters | None
    """None in a pod with its own kernel, whose processes are not visible on the node."""
    open_files_limit: int | None
    """The limit of the container's first process."""
    resources: api.LinuxContainerResources
    file_system: FileSystem
    """The file system of all writable layers."""
    layer_bytes: int | None
    device_paths: Mapping[tuple[int, int], str]
    """By major and minor number; "" for a device without a name."""


@dataclass(frozen=True, slots=True)
class PodReading:
    """The values of a ready pod and its running containers."""

    sandbox: Sandbox
    read_at_ns: int
    interfaces: Sequence[InterfaceCounters]
    containers: Sequence[ContainerReading]
