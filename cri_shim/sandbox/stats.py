"""What containers use: CPU and memory from their cgroups, disk from their writable layers.

Rules: no child process and no lock on the way; cgroup files are read in one pass in a thread; a walk through a writable
layer is the dear part, so its result is kept for `cache_s` seconds. A container that vanishes meanwhile is left out.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.host.tree import DiskUsage, disk_usage
from cri_shim.sandbox.model import ContainerState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.cgroups.usage import CgroupStats
    from cri_shim.paths import Paths
    from cri_shim.sandbox.store import Container, Store

log = structlog.get_logger()
MIN_RATE_SPAN_NS = 500_000_000
"""Two CPU readings closer than this say nothing about a rate."""


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """One container's usage. `cgroup` is None for one that does not run."""

    container: Container
    cgroup: CgroupStats | None
    cpu_nano_cores: int | None
    """CPU nanoseconds per second since the last reading; None at the first one."""
    writable_layer: Path
    layer_read_at_ns: int
    layer_bytes: int
    layer_inodes: int


@dataclass(frozen=True, slots=True)
class _Layer:
    read_at_ns: int
    until: float
    used_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class _CpuReading:
    at_ns: int
    usage_ns: int
    rate: int | None


class Stats:
    """ContainerStats and ListContainerStats."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: Store[Container],
        cgroups: Cgroups,
        cgroup_dir: Callable[[Container], str],
        cache_s: float,
    ) -> None:
        self._paths = paths
        self._store = store
        self._cgroups = cgroups
        self._cgroup_dir = cgroup_dir
        self._cache_s = cache_s
        self._layers: dict[str, _Layer] = {}
        self._cpu: dict[str, _CpuReading] = {}

    async def container_stats(self, containers: Sequence[Container]) -> list[ContainerUsage]:
        """The usage of these containers; those that vanish while they are read are left out."""
        return await asyncio.to_thread(self._read_all, list(containers))

    async def layers_usage(self) -> DiskUsage:
        """What the writable layers of all containers take, each at most `cache_s` old."""
        usages = await self.container_stats(list(self._store))
        return DiskUsage(
            sum(usage.layer_bytes for usage in usages), sum(usage.layer_inodes for usage in usages)
        )

    def _read_all(self, containers: list[Container]) -> list[ContainerUsage]:
        usages = []
        for container in containers:
            try:
                usages.append(self._read(container))
            except OSError as error:
                log.debug("no stats", container_id=container.id, error=str(error))
        if len(self._layers) > len(self._store):
            self._prune()
        return usages

    def _prune(self) -> None:
        """Drop what is kept of containers that are gone."""
        for kept in (self._layers, self._cpu):
            for container_id in [key for key in list(kept) if self._store.get(key) is None]:
                kept.pop(container_id, None)

    def _read(self, container: Container) -> ContainerUsage:
        upper_dir = self._paths.container(container.id).upper_dir
        layer = self._layers.get(container.id)
        if layer is None or time.monotonic() > layer.until:
            usage = disk_usage(upper_dir)
            layer = _Layer(
                time.time_ns(), time.monotonic() + self._cache_s, usage.used_bytes, usage.inodes
            )
            self._layers[container.id] = layer
        cgroup = None
        if container.state is ContainerState.RUNNING:
            cgroup = self._cgroups.read_stats(self._cgroup_dir(container))
        return ContainerUsage(
            container=container,
            cgroup=cgroup,
            cpu_nano_cores=self._rate(container.id, cgroup) if cgroup else None,
            writable_layer=upper_dir,
            layer_read_at_ns=layer.read_at_ns,
            layer_bytes=layer.used_bytes,
            layer_inodes=layer.inodes,
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
