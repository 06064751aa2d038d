"""Resource usage of containers: CPU and memory from cgroups, disk usage of writable layers.

Rules:
- No lock is taken, and no child process is run, except for containers in pods with their own kernels: their runtimes
  are queried by `runtime_usage`, with a bounded wait.
- Cgroup files are read in one thread for all containers. Layers are measured by `layer_usage`, with a bounded wait.
- CPU rates are the same for all clients (`cpu_rates`).
- A container that is removed meanwhile is left out.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import uninterrupted
from cri_shim.host.tree import DiskUsage
from cri_shim.sandbox.cpu_rates import CpuReading
from cri_shim.sandbox.store.model import ContainerState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.cgroups.usage import CgroupStats
    from cri_shim.paths import Paths
    from cri_shim.sandbox.cpu_rates import CpuRates
    from cri_shim.sandbox.layer_usage import LayerUsage, LayerUsages
    from cri_shim.sandbox.runtime_usage import RuntimeUsages
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.store.store import Container, Store

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """The usage of a container. `cgroup` is None if it does not run."""

    container: Container
    cgroup: CgroupStats | None
    cpu_nano_cores: int | None
    """CPU nanoseconds per second between the last two samples. None before the second one."""
    writable_layer: Path
    layer_read_at_ns: int
    layer_bytes: int | None
    """None until the layer's first measurement ends."""
    layer_inodes: int | None


class Stats:
    """The usage of containers, for ContainerStats, ListContainerStats and ImageFsInfo."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: Store[Container],
        cgroups: Cgroups,
        cgroup_paths: CgroupPaths,
        rates: CpuRates,
        layers: LayerUsages,
        inside: RuntimeUsages,
    ) -> None:
        self._paths = paths
        self._store = store
        self._cgroups = cgroups
        self._cgroup_paths = cgroup_paths
        self._rates = rates
        self._layers = layers
        self._inside = inside

    @property
    def remembered(self) -> frozenset[str]:
        """The containers whose writable layer has a cached measurement."""
        return self._layers.remembered

    async def container_stats(self, containers: Sequence[Container]) -> list[ContainerUsage]:
        """The usage of these containers. Containers that are removed meanwhile are left out."""
        running = [each for each in containers if each.state is ContainerState.RUNNING]
        layers, inside = await asyncio.gather(self._layers.of(containers), self._inside.of(running))
        usages = await uninterrupted(self._read_all, list(containers), layers, inside)
        self._rates.asked()
        return usages

    async def layers_usage(self) -> DiskUsage:
        """The total usage of all measured writable layers."""
        layers = [layer for layer in (await self._layers.of(list(self._store))).values() if layer]
        return DiskUsage(
            sum(layer.used_bytes for layer in layers), sum(layer.inodes for layer in layers)
        )

    def _read_all(
        self,
        containers: list[Container],
        layers: Mapping[str, LayerUsage | None],
        inside: Mapping[str, CgroupStats | None],
    ) -> list[ContainerUsage]:
        usages = []
        for container in containers:
            if container.id in layers:
                try:
                    layer = layers[container.id]
                    usages.append(
                        self._usage(container, layer, inside[container.id], directory=None)
                        if container.id in inside
                        else self._read(container, layer)
                    )
                except OSError as error:
                    log.debug("no stats", container_id=container.id, error=str(error))
        return usages

    def _read(self, container: Container, layer: LayerUsage | None) -> ContainerUsage:
        directory = self._cgroup_paths.directory_of(container)
        running = container.state is ContainerState.RUNNING
        cgroup = self._cgroups.read_stats(directory) if running else None
        return self._usage(container, layer, cgroup, directory)

    def _usage(
        self,
        container: Container,
        layer: LayerUsage | None,
        cgroup: CgroupStats | None,
        directory: str | None,
    ) -> ContainerUsage:
        rate = None if cgroup is None else self._rate(container, cgroup, directory)
        return ContainerUsage(
            container=container,
            cgroup=cgroup,
            cpu_nano_cores=rate,
            writable_layer=self._paths.container(container.id).upper_dir,
            layer_read_at_ns=layer.read_at_ns if layer else time.time_ns(),
            layer_bytes=layer.used_bytes if layer else None,
            layer_inodes=layer.inodes if layer else None,
        )

    def _rate(self, container: Container, cgroup: CgroupStats, directory: str | None) -> int | None:
        if cgroup.cpu_usage_ns is None:
            return None
        reading = CpuReading(cgroup.read_at_ns, cgroup.cpu_usage_ns)
        return self._rates.rate(container.id, reading, directory)
