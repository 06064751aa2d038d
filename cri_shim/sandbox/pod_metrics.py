"""Reads the values of CRI's metrics: of the running containers of ready pods, and of the pods' interfaces.

Rules:
- `stats` reads the values that are part of the statistics. The rest is read in one pass over small files, in a thread,
  without child processes or locks, and without entering a pod's namespaces or opening its files. Values that a
  container can make large are bounded (`host.process_counters`).
- Only values of the configured groups are read.
- A pod that stops meanwhile is left out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cri_shim.config.metric_groups import MetricGroup
from cri_shim.host.block_devices import FileSystem
from cri_shim.host.cgroups.counters import CgroupCounters
from cri_shim.kernel_call import in_time
from cri_shim.sandbox.container_resources import resources_in_force
from cri_shim.sandbox.cri_metrics.families import CONTAINER_FAMILIES, POD_FAMILIES
from cri_shim.sandbox.cri_metrics.readings import ContainerReading, PodReading
from cri_shim.sandbox.pod_stats import read_network
from cri_shim.sandbox.store.model import ContainerState, SandboxState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.sandbox.cri_metrics.families import Family
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.stats import ContainerUsage, Stats
    from cri_shim.sandbox.store.store import Container, Sandbox, Store

_COUNTED: Final = frozenset(
    {
        *(MetricGroup.CPU, MetricGroup.DISK_IO, MetricGroup.HUGETLB, MetricGroup.MEMORY),
        *(MetricGroup.OOM, MetricGroup.PROCESS, MetricGroup.SPEC),
    }
)
"""Groups with values from `read_counters`."""
MAX_DEVICES: Final = 1024
"""Limit of the cache of block device names."""


class PodMetrics:
    """The metrics of pods, for ListMetricDescriptors and ListPodSandboxMetrics."""

    def __init__(
        self,
        *,
        host: Host,
        containers: Store[Container],
        stats: Stats,
        cgroups: Cgroups,
        cgroup_paths: CgroupPaths,
        layers_dir: Path,
        groups: Collection[MetricGroup],
    ) -> None:
        """`layers_dir` is on the file system of all writable layers. `groups` are the configured groups."""
        self._host = host
        self._containers = containers
        self._stats = stats
        self._cgroups = cgroups
        self._cgroup_paths = cgroup_paths
        self._layers_dir = layers_dir
        self._groups = frozenset(groups)
        self._device_paths: dict[tuple[int, int], str] = {}
        self.container_families: Sequence[Family[ContainerReading]] = tuple(
            family for family in CONTAINER_FAMILIES if family.group in self._groups
        )
        self.pod_families: Sequence[Family[PodReading]] = tuple(
            family for family in POD_FAMILIES if family.group in self._groups
        )

    async def pod_sandbox_metrics(self, sandboxes: Sequence[Sandbox]) -> list[PodReading]:
        """The values of those of these pods that are ready before and after the reading.

        Raises DeadlineError if the kernel does not answer.
        """
        ready = [each for each in sandboxes if each.state is SandboxState.READY]
        running = [
            container
            for sandbox in ready
            for container in self._containers.of_sandbox(sandbox.id)
            if container.state is ContainerState.RUNNING
        ]
        by_pod: dict[str, list[ContainerUsage]] = {sandbox.id: [] for sandbox in ready}
        for usage in await self._stats.container_stats(running):
            by_pod[usage.container.sandbox_id].append(usage)
        readings = await in_time("reading the metrics of pods", self._read_all, ready, by_pod)
        return [each for each in readings if each.sandbox.state is SandboxState.READY]

    def _read_all(
        self, sandboxes: Iterable[Sandbox], by_pod: Mapping[str, Sequence[ContainerUsage]]
    ) -> list[PodReading]:
        if len(self._device_paths) > MAX_DEVICES:
            self._device_paths = {}
        file_system = FileSystem("", 0, 0, 0)
        if MetricGroup.DISK in self._groups:
            file_system = self._host.file_system_of(self._layers_dir)
        return [self._read_pod(sandbox, by_pod[sandbox.id], file_system) for sandbox in sandboxes]

    def _read_pod(
        self, sandbox: Sandbox, usages: Iterable[ContainerUsage], file_system: FileSystem
    ) -> PodReading:
        network = read_network(self._host, sandbox) if self.pod_families else None
        return PodReading(
            sandbox=sandbox,
            read_at_ns=time.time_ns(),
            interfaces=[] if network is None else [network.default, *network.others],
            containers=[
                reading
                for usage in usages
                if (reading := self._read_container(usage, file_system)) is not None
            ],
        )

    def _read_container(
        self, usage: ContainerUsage, file_system: FileSystem
    ) -> ContainerReading | None:
        if usage.cgroup is None:  # it has ended meanwhile
            return None
        container, counters, processes = usage.container, CgroupCounters(), None
        directory, limit = self._cgroup_paths.directory_of(container), None
        if self._groups & _COUNTED:
            counters = self._cgroups.read_counters(directory)
        if MetricGroup.PROCESS in self._groups:
            processes = self._cgroups.count_processes(directory)
            # A running container has processes. If its cgroup has none, the pod has its own kernel.
            if not processes.processes:
                processes = None
            elif container.status.process is not None:
                limit = self._host.open_files_limit(container.status.process.pid)
        return ContainerReading(
            container=container,
            usage=usage.cgroup,
            counters=counters,
            processes=processes,
            open_files_limit=limit,
            resources=resources_in_force(container),
            file_system=file_system,
            layer_bytes=usage.layer_bytes,
            device_paths={numbers: self._device_path(numbers) for numbers in counters.devices},
        )

    def _device_path(self, numbers: tuple[int, int]) -> str:
        found = self._device_paths.get(numbers)
        if found is None:
            found = self._device_paths[numbers] = self._host.device_path(*numbers)
        return found
