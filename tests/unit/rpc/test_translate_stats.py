"""Usage as CRI's messages: what is known is set, be it 0, and what is not stays unset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.host.cgroups.pressure import Pressure, Stalls
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.host.interface_counters import InterfaceCounters
from cri_shim.rpc.translate_stats import container_stats, pod_stats
from cri_shim.sandbox.pod_stats import NetworkUsage, PodUsage
from cri_shim.sandbox.stats import ContainerUsage
from tests.unit.rpc.fakes import make_container, make_sandbox

if TYPE_CHECKING:
    from cri_shim.sandbox.store.store import Container

CGROUP = CgroupStats(
    read_at_ns=5,
    cpu_usage_ns=77,
    memory_usage_bytes=900,
    working_set_bytes=800,
    rss_bytes=0,
    page_faults=10,
    major_page_faults=1,
    memory_available_bytes=100,
    swap_usage_bytes=3,
    pids_current=4,
)
PRESSED = replace(
    CGROUP,
    cpu_pressure=Pressure(some=Stalls(7, 1.5, 2.5, 3.5)),
    memory_pressure=Pressure(Stalls(8, 0, 0, 0), Stalls(9, 0, 0, 0)),
    io_pressure=Pressure(Stalls(10, 0, 0, 0), Stalls(11, 0, 0, 0)),
)


def usage(container: Container, cgroup: CgroupStats | None, **changes: Any) -> ContainerUsage:
    facts: dict[str, Any] = {
        "cpu_nano_cores": 250_000_000,
        "writable_layer": Path("/x/upper"),
        "layer_read_at_ns": 6,
        "layer_bytes": 4096,
        "layer_inodes": 0,
        **changes,
    }
    return ContainerUsage(container=container, cgroup=cgroup, **facts)


def test_stats_tell_what_the_node_accounts() -> None:
    stats = container_stats(usage(make_container(), CGROUP), mountpoint="/var/lib/x")
    assert stats.attributes.id == "c" * 64
    assert stats.attributes.labels == {"tier": "front"}
    assert (stats.cpu.timestamp, stats.memory.timestamp) == (5, 5)
    assert stats.cpu.usage_core_nano_seconds.value == 77
    assert stats.cpu.usage_nano_cores.value == 250_000_000
    memory = stats.memory
    assert (memory.working_set_bytes.value, memory.usage_bytes.value) == (800, 900)
    assert (memory.available_bytes.value, memory.page_faults.value) == (100, 10)
    assert memory.HasField("rss_bytes"), "0 is known, not absent"
    assert stats.swap.swap_usage_bytes.value == 3
    layer = stats.writable_layer
    assert (layer.timestamp, layer.fs_id.mountpoint) == (6, "/var/lib/x")
    assert (layer.used_bytes.value, layer.HasField("inodes_used")) == (4096, True)


def test_stats_of_a_container_without_processes_are_its_layer_only() -> None:
    stats = container_stats(usage(make_container(), None), mountpoint="/x")
    assert not stats.HasField("cpu")
    assert not stats.HasField("memory")
    assert stats.HasField("writable_layer")


def test_what_the_node_does_not_account_stays_unset() -> None:
    stats = container_stats(
        usage(make_container(), CgroupStats(read_at_ns=5), cpu_nano_cores=None), mountpoint="/x"
    )
    assert not stats.cpu.HasField("usage_core_nano_seconds")
    assert not stats.cpu.HasField("usage_nano_cores")
    assert not stats.memory.HasField("available_bytes")
    assert not stats.HasField("swap")
    assert not stats.cpu.HasField("psi")
    assert not stats.HasField("io")


def test_pressure_is_told_in_nanoseconds_where_the_kernel_has_it() -> None:
    stats = container_stats(usage(make_container(), PRESSED), mountpoint="/x")
    cpu = stats.cpu.psi
    assert (cpu.Some.Total, cpu.Some.Avg10, cpu.Some.Avg60, cpu.Some.Avg300) == (
        7000,
        1.5,
        2.5,
        3.5,
    )
    assert not cpu.HasField("Full")
    assert (stats.memory.psi.Some.Total, stats.memory.psi.Full.Total) == (8000, 9000)
    assert stats.io.timestamp == 5
    assert (stats.io.psi.Some.Total, stats.io.psi.Full.Total) == (10_000, 11_000)


def interface(name: str, first: int) -> InterfaceCounters:
    return InterfaceCounters(name, *range(first, first + 8))


def pod(cgroup: CgroupStats, network: NetworkUsage | None = None) -> PodUsage:
    containers = [usage(make_container(), cgroup)]
    return PodUsage(make_sandbox(), cgroup, 250_000_000, network, containers)


def test_a_pod_has_the_usage_of_all_it_is_made_of() -> None:
    network = NetworkUsage(6, interface("eth0", 10), [interface("net1", 20)])
    stats = pod_stats(pod(PRESSED, network), mountpoint="/x")
    assert stats.attributes.id == "5" * 64
    assert (stats.attributes.metadata.name, stats.attributes.metadata.attempt) == ("web", 2)
    assert dict(stats.attributes.labels) == {"app": "web"}
    assert dict(stats.attributes.annotations) == {"note": "one"}
    linux = stats.linux
    assert (linux.cpu.usage_core_nano_seconds.value, linux.cpu.usage_nano_cores.value) == (
        *(77, 250_000_000),
    )
    assert (linux.memory.working_set_bytes.value, linux.memory.usage_bytes.value) == (800, 900)
    assert linux.process.process_count.value == 4
    assert linux.io.psi.Full.Total == 11_000
    assert [each.attributes.metadata.name for each in linux.containers] == ["app"]
    default = linux.network.default_interface
    assert (default.name, default.rx_bytes.value, default.rx_errors.value) == ("eth0", 10, 12)
    assert (default.tx_bytes.value, default.tx_errors.value) == (14, 16)
    assert [each.name for each in linux.network.interfaces] == ["net1"]


def test_every_part_of_a_pods_usage_says_when_it_was_read() -> None:
    network = NetworkUsage(6, interface("eth0", 10), [])
    linux = pod_stats(pod(PRESSED, network), mountpoint="/x").linux
    parts = (linux.cpu, linux.memory, linux.process, linux.io, linux.network)
    assert [part.timestamp for part in parts] == [5, 5, 5, 5, 6]


def test_a_pod_without_a_network_of_its_own_shows_none() -> None:
    linux = pod_stats(pod(CgroupStats(read_at_ns=5)), mountpoint="/x").linux
    assert not linux.HasField("network")
    assert not linux.HasField("io")
    assert not linux.process.HasField("process_count")
