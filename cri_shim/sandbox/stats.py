"""Resource usage of containers: CPU and memory from cgroups, disk usage of writable layers.

Rules:
- No child process is run, and no lock is taken.
- Cgroup files are read in one thread for all containers. Layers are measured by `layer_usage`, with a bounded wait.
- A container that is removed meanwhile is left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import uninterrupted
from cri_shim.host.tree import DiskUsage
from cri_shim.sandbox.layer_usage import LayerUsages
from cri_shim.sandbox.store.model import ContainerState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.cgroups.usage import CgroupStats
    from cri_shim.paths import Paths
    from cri_shim.sandbox.layer_usage import LayerUsage
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.store.store import Container, Store

log = structlog.get_logger()
MIN_RATE_SPAN_NS = 500_000_000
"""The least time between two CPU readings of which a rate is computed."""


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """The usage of a container. `cgroup` is None if it does not run."""

    container: Container
    cgroup: CgroupStats | None
    cpu_nano_cores: int | None
    """CPU nanoseconds per second since the last reading; None at the first reading."""
    writable_layer: Path
    layer_read_at_ns: int
    layer_bytes: int | None
    """None until the layer's first measurement ends."""
    layer_inodes: int | None


@dataclass(frozen=True, slots=True)
class _CpuReading:
    at_ns: int
    usage_ns: int
    rate: int | None


class Stats:
    """The usage of containers, for ContainerStats, ListContainerStats and ImageFsInfo."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: Store[Container],
        cgroups: Cgroups,
        cgroup_paths: CgroupPaths,
        background: Background,
        cache_s: float,
    ) -> None:
        self._paths = paths
        self._store = store
        self._cgroups = cgroups
        self._cgroup_paths = cgroup_paths
        self._layers = LayerUsages(
            store,
            lambda object_id: paths.container(object_id).upper_dir,
            background,
            cache_s=cache_s,
        )
        self._cpu: dict[str, _CpuReading] = {}

    @property
    def remembered(self) -> frozenset[str]:
        """The containers of which an earlier reading is kept, of CPU or of the writable layer."""
        return frozenset(self._cpu) | self._layers.remembered

    async def container_stats(self, containers: Sequence[Container]) -> list[ContainerUsage]:
        """The usage of these containers. Containers that are removed meanwhile are left out."""
        layers = await self._layers.of(containers)
        return await uninterrupted(self._read_all, list(containers), layers)

    async def layers_usage(self) -> DiskUsage:
        """The total usage of all measured writable layers."""
        layers = [layer for layer in (await self._layers.of(list(self._store))).values() if layer]
        return DiskUsage(
            sum(layer.used_bytes for layer in layers), sum(layer.inodes for layer in layers)
        )

    def _read_all(
        self, containers: list[Container], layers: Mapping[str, LayerUsage | None]
    ) -> list[ContainerUsage]:
        usages = []
        for container in containers:
            if container.id in layers:
                try:
                    usages.append(self._read(container, layers[container.id]))
                except OSError as error:
                    log.debug("no stats", container_id=container.id, error=str(error))
        if len(self._cpu) > len(self._store):
            self._prune()
        return usages

    def _prune(self) -> None:
        """Drop the CPU readings of removed containers."""
        for container_id in [key for key in list(self._cpu) if self._store.get(key) is None]:
            self._cpu.pop(container_id, None)

    def _read(self, container: Container, layer: LayerUsage | None) -> ContainerUsage:
        cgroup = None
        if container.state is ContainerState.RUNNING:
            cgroup = self._cgroups.read_stats(self._cgroup_paths.directory_of(container))
        return ContainerUsage(
            container=container,
            cgroup=cgroup,
            cpu_nano_cores=self._rate(container.id, cgroup) if cgroup else None,
            writable_layer=self._paths.container(container.id).upper_dir,
            layer_read_at_ns=layer.read_at_ns if layer else time.time_ns(),
            layer_bytes=layer.used_bytes if layer else None,
            layer_inodes=layer.inodes if layer else None,
        )

    def _rate(self, container_id: str, cgroup: CgroupStats) -> int | None:
        if cgroup.cpu_usage_ns is None:
            return None
        last = self._cpu.get(container_id)
        rate = None
        if last is not None:
            span_ns = cgroup.read_at_ns - last.at_ns
            if span_ns < MIN_RATE_SPAN_NS:
                return last.rate
            rate = max(cgroup.cpu_usage_ns - last.usage_ns, 0) * 1_000_000_000 // span_ns
        self._cpu[container_id] = _CpuReading(cgroup.read_at_ns, cgroup.cpu_usage_ns, rate)
        return rate
