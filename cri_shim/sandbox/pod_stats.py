"""Resource usage of pods: cgroup, network, and containers.

Rules:
- `stats` reads the containers. The rest is read in one pass over a few small files, in a thread, without child
  processes or locks, and without entering a pod's namespaces.
- Only ready pods are reported. A pod that stops meanwhile is left out.
- A pod's usage is that of the cgroup that the client created for it, the parent of its containers' cgroups. If several
  pods share that parent, or there is none, it is the sum of the usage of the pod's own cgroups. For a pod with its own
  kernel it is then the sum of its containers' usage: the pause container's cgroup may count that a second time.
- A pod's programs may add interfaces, so at most `MAX_INTERFACES` are reported in addition to the default one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.kernel_call import in_time
from cri_shim.sandbox.cpu_rates import CpuReading
from cri_shim.sandbox.network.pod_network import LOOPBACK
from cri_shim.sandbox.store.model import SandboxState
from cri_shim.sandbox.store.processes import own_kernel_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.interface_counters import InterfaceCounters
    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import Runtime
    from cri_shim.sandbox.cpu_rates import CpuRates
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.stats import ContainerUsage, Stats
    from cri_shim.sandbox.store.store import Container, Sandbox, Store

MAX_INTERFACES: Final = 32


@dataclass(frozen=True, slots=True)
class NetworkUsage:
    """The interfaces of a pod's network namespace, without loopback."""

    read_at_ns: int
    default: InterfaceCounters
    """The interface with the pod's address."""
    others: Sequence[InterfaceCounters]


@dataclass(frozen=True, slots=True)
class PodUsage:
    """The usage of a pod."""

    sandbox: Sandbox
    cgroup: CgroupStats
    cpu_nano_cores: int | None
    """See `ContainerUsage`."""
    network: NetworkUsage | None
    """None for a pod on the node's network."""
    containers: Sequence[ContainerUsage]


class PodStats:
    """The usage of pods, for PodSandboxStats and ListPodSandboxStats."""

    def __init__(
        self,
        *,
        host: Host,
        sandboxes: Store[Sandbox],
        containers: Store[Container],
        stats: Stats,
        cgroups: Cgroups,
        cgroup_paths: CgroupPaths,
        rates: CpuRates,
        runtime_of: Callable[[str], Runtime],
    ) -> None:
        self._host = host
        self._sandboxes = sandboxes
        self._containers = containers
        self._stats = stats
        self._cgroups = cgroups
        self._cgroup_paths = cgroup_paths
        self._rates = rates
        self._runtime_of = runtime_of

    async def pod_sandbox_stats(self, sandboxes: Sequence[Sandbox]) -> list[PodUsage]:
        """The usage of those of these pods that are ready before and after the reading.

        Raises DeadlineError if the kernel does not answer.
        """
        ready = [each for each in sandboxes if _is_ready(each)]
        containers = [
            container
            for sandbox in ready
            for container in self._containers.of_sandbox(sandbox.id)
            if container.status.is_complete
        ]
        by_pod: dict[str, list[ContainerUsage]] = {sandbox.id: [] for sandbox in ready}
        for usage in await self._stats.container_stats(containers):
            by_pod[usage.container.sandbox_id].append(usage)
        shared = self._cgroup_paths.shared(filter(_is_ready, self._sandboxes))
        usages = await in_time("reading the usage of pods", self._read_all, ready, by_pod, shared)
        self._rates.asked()
        return [usage for usage in usages if _is_ready(usage.sandbox)]

    def _read_all(
        self,
        sandboxes: Iterable[Sandbox],
        by_pod: Mapping[str, Sequence[ContainerUsage]],
        shared: frozenset[str],
    ) -> list[PodUsage]:
        return [self._read(sandbox, by_pod[sandbox.id], shared) for sandbox in sandboxes]

    def _read(
        self, sandbox: Sandbox, containers: Sequence[ContainerUsage], shared: frozenset[str]
    ) -> PodUsage:
        directory = self._cgroup_paths.pod_directory_of(sandbox)
        has_its_own = directory not in shared
        if has_its_own:
            cgroup = self._cgroups.read_stats(directory)
        else:
            parts = [each.cgroup for each in containers if each.cgroup]
            if not parts or own_kernel_runtime(self._runtime_of, sandbox.record.handler) is None:
                parts.append(self._cgroups.read_stats(self._cgroup_paths.directory_of(sandbox)))
            cgroup = summed(parts)
        rate = None
        if cgroup.cpu_usage_ns is not None:
            reading = CpuReading(cgroup.read_at_ns, cgroup.cpu_usage_ns)
            rate = self._rates.rate(sandbox.id, reading, directory if has_its_own else None)
        return PodUsage(sandbox, cgroup, rate, read_network(self._host, sandbox), containers)


def read_network(host: Host, sandbox: Sandbox) -> NetworkUsage | None:
    """The network usage of a pod; None for one on the host's network, or without interfaces. Synchronous: one file."""
    process, netns = sandbox.status.process, sandbox.record.netns
    if process is None or not netns:
        return None
    interfaces = host.interface_counters(process.pid, Path(netns))
    return network_usage(interfaces or (), _default_name(sandbox), time.time_ns())


def network_usage(
    interfaces: Iterable[InterfaceCounters], default_name: str, read_at_ns: int
) -> NetworkUsage | None:
    """The default interface and the others. None if there is only loopback. Pure.

    Without an interface `default_name` the first one is the default, since clients expect one.
    """
    seen = [each for each in interfaces if each.name != LOOPBACK]
    if not seen:
        return None
    default = next((each for each in seen if each.name == default_name), seen[0])
    others = [each for each in seen if each is not default]
    return NetworkUsage(read_at_ns, default, others[:MAX_INTERFACES])


def summed(parts: Sequence[CgroupStats]) -> CgroupStats:
    """The total usage of several cgroups. Limits, pressure and values that none of them has are None. Pure."""

    def total(name: str) -> int | None:
        known = [value for part in parts if (value := getattr(part, name)) is not None]
        return sum(known) if known else None

    return CgroupStats(
        read_at_ns=max(part.read_at_ns for part in parts),
        cpu_usage_ns=total("cpu_usage_ns"),
        memory_usage_bytes=total("memory_usage_bytes"),
        working_set_bytes=total("working_set_bytes"),
        rss_bytes=total("rss_bytes"),
        page_faults=total("page_faults"),
        major_page_faults=total("major_page_faults"),
        pids_current=total("pids_current"),
    )


def _is_ready(sandbox: Sandbox) -> bool:
    return sandbox.state is SandboxState.READY


def _default_name(sandbox: Sandbox) -> str:
    """The interface with the pod's address, chosen as in `PodNetwork.attach`: that of its first network."""
    names = (each.ifname for each in sandbox.status.attachments)
    return next((name for name in names if name != LOOPBACK), "")
