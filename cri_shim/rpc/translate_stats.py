"""Builds CRI messages of what pods and containers use. Pure. What the node does not account stays unset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc.translate_containers import metadata as container_metadata
from cri_shim.rpc.translate_pods import metadata as pod_metadata

if TYPE_CHECKING:
    from cri_shim.host.cgroups.pressure import Pressure, Stalls
    from cri_shim.host.cgroups.usage import CgroupStats
    from cri_shim.host.interface_counters import InterfaceCounters
    from cri_shim.sandbox.pod_stats import NetworkUsage, PodUsage
    from cri_shim.sandbox.stats import ContainerUsage

_NS_PER_US: Final = 1000


def container_stats(usage: ContainerUsage, *, mountpoint: str) -> api.ContainerStats:
    """The usage of a container in ContainerStatsResponse.

    `mountpoint` is a directory on the file system of all writable layers, the same as in ImageFsInfo's response:
    kubelet calls statfs(2) on each one that it has not seen before.
    """
    record, config, cgroup = usage.container.record, usage.container.config, usage.cgroup
    message = api.ContainerStats(
        attributes=api.ContainerAttributes(
            id=record.id,
            metadata=container_metadata(record.metadata),
            labels=config.labels,
            annotations=config.annotations,
        ),
        writable_layer=api.FilesystemUsage(
            timestamp=usage.layer_read_at_ns,
            fs_id=api.FilesystemIdentifier(mountpoint=mountpoint),
            used_bytes=_number(usage.layer_bytes),
            inodes_used=_number(usage.layer_inodes),
        ),
    )
    if cgroup is not None:
        message.cpu.CopyFrom(_cpu(cgroup, usage.cpu_nano_cores))
        message.memory.CopyFrom(_memory(cgroup))
        if cgroup.io_pressure is not None:
            message.io.CopyFrom(_io(cgroup))
        if cgroup.swap_usage_bytes is not None:
            message.swap.timestamp = cgroup.read_at_ns
            message.swap.swap_usage_bytes.CopyFrom(api.UInt64Value(value=cgroup.swap_usage_bytes))
    return message


def pod_stats(usage: PodUsage, *, mountpoint: str) -> api.PodSandboxStats:
    """The usage of a sandbox and its containers in PodSandboxStatsResponse; `mountpoint` as for `container_stats`."""
    record, config, cgroup = usage.sandbox.record, usage.sandbox.config, usage.cgroup
    linux = api.LinuxPodSandboxStats(
        cpu=_cpu(cgroup, usage.cpu_nano_cores),
        memory=_memory(cgroup),
        network=_network(usage.network) if usage.network is not None else None,
        process=api.ProcessUsage(
            timestamp=cgroup.read_at_ns, process_count=_number(cgroup.pids_current)
        ),
        io=_io(cgroup) if cgroup.io_pressure is not None else None,
        containers=[container_stats(each, mountpoint=mountpoint) for each in usage.containers],
    )
    return api.PodSandboxStats(
        attributes=api.PodSandboxAttributes(
            id=record.id,
            metadata=pod_metadata(record.metadata),
            labels=config.labels,
            annotations=config.annotations,
        ),
        linux=linux,
    )


def _cpu(cgroup: CgroupStats, nano_cores: int | None) -> api.CpuUsage:
    return api.CpuUsage(
        timestamp=cgroup.read_at_ns,
        usage_core_nano_seconds=_number(cgroup.cpu_usage_ns),
        usage_nano_cores=_number(nano_cores),
        psi=_psi(cgroup.cpu_pressure),
    )


def _memory(cgroup: CgroupStats) -> api.MemoryUsage:
    return api.MemoryUsage(
        timestamp=cgroup.read_at_ns,
        working_set_bytes=_number(cgroup.working_set_bytes),
        available_bytes=_number(cgroup.memory_available_bytes),
        usage_bytes=_number(cgroup.memory_usage_bytes),
        rss_bytes=_number(cgroup.rss_bytes),
        page_faults=_number(cgroup.page_faults),
        major_page_faults=_number(cgroup.major_page_faults),
        psi=_psi(cgroup.memory_pressure),
    )


def _io(cgroup: CgroupStats) -> api.IoUsage:
    return api.IoUsage(timestamp=cgroup.read_at_ns, psi=_psi(cgroup.io_pressure))


def _network(network: NetworkUsage) -> api.NetworkUsage:
    return api.NetworkUsage(
        timestamp=network.read_at_ns,
        default_interface=_interface(network.default),
        interfaces=[_interface(each) for each in network.others],
    )


def _interface(counters: InterfaceCounters) -> api.NetworkInterfaceUsage:
    return api.NetworkInterfaceUsage(
        name=counters.name,
        rx_bytes=_number(counters.received_bytes),
        rx_errors=_number(counters.receive_errors),
        tx_bytes=_number(counters.sent_bytes),
        tx_errors=_number(counters.send_errors),
    )


def _psi(pressure: Pressure | None) -> api.PsiStats | None:
    if pressure is None:
        return None
    return api.PsiStats(Some=_stalls(pressure.some), Full=_stalls(pressure.full))


def _stalls(stalls: Stalls | None) -> api.PsiData | None:
    if stalls is None:
        return None
    return api.PsiData(
        Total=stalls.total_us * _NS_PER_US,
        Avg10=stalls.avg10,
        Avg60=stalls.avg60,
        Avg300=stalls.avg300,
    )


def _number(value: int | None) -> api.UInt64Value | None:
    """A field that is set, be it 0, or unset for None."""
    return None if value is None else api.UInt64Value(value=value)
