"""What pods use: their cgroup or the sum of their own, their network, and who is left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from cri_shim.background import Background
from cri_shim.config.model import HandlerKind
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.host.interface_counters import InterfaceCounters
from cri_shim.host.tree import disk_usage
from cri_shim.oci.runtime import PidsUsage, RuntimeStats
from cri_shim.paths import Paths
from cri_shim.sandbox.cpu_rates import CpuRates
from cri_shim.sandbox.layer_usage import LayerUsages
from cri_shim.sandbox.pod_stats import MAX_INTERFACES, PodStats, PodUsage, network_usage, summed
from cri_shim.sandbox.runtime_usage import RuntimeUsages
from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
from cri_shim.sandbox.stats import Stats
from cri_shim.sandbox.store.model import (
    ContainerStatus,
    NetworkAttachment,
    Process,
    SandboxStatus,
)
from cri_shim.sandbox.store.store import Container, Sandbox, Store, read_container, read_sandbox
from tests.fakes.kernel import Kernel
from tests.fakes.points import Points
from tests.fakes.runtime import Entry, FakeRuntime
from tests.unit.sandbox.records import make_container, make_sandbox

if TYPE_CHECKING:
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host

pytestmark = pytest.mark.asyncio
RUNNING = ContainerStatus(committed_at_ns=1, started_at_ns=2)
EXITED = ContainerStatus(committed_at_ns=1, started_at_ns=2, finished_at_ns=3)
SECOND = 1_000_000_000


def interface(name: str, count: int = 1) -> InterfaceCounters:
    return InterfaceCounters(name, *([count] * 8))


class Node:
    """Pods with cgroups, namespaces and containers."""

    def __init__(self, base: Path) -> None:
        self.paths = Paths(base / "root", base / "state")
        self.paths.containers_dir.mkdir(parents=True)
        self.paths.sandboxes_dir.mkdir(parents=True)
        self.kernel = Kernel(Points())
        self.runtimes = {
            "runc": FakeRuntime(self.kernel),
            "vm": FakeRuntime(self.kernel, "vm", HandlerKind.VM),
        }
        self.sandboxes: Store[Sandbox] = Store(
            "sandbox", self.paths.sandboxes_dir, self.paths.sandbox, read_sandbox
        )
        self.containers: Store[Container] = Store(
            "container", self.paths.containers_dir, self.paths.container, read_container
        )
        background = Background()
        cgroups = cast("Cgroups", self.kernel.cgroups)
        cgroup_paths = CgroupPaths(systemd=False, default_parent="")
        self.rates = rates = CpuRates(self.kernel.cgroups.cpu_usage_ns, background)
        self.container_stats = Stats(
            paths=self.paths,
            store=self.containers,
            cgroups=cgroups,
            cgroup_paths=cgroup_paths,
            rates=rates,
            layers=LayerUsages(
                self.containers,
                lambda object_id: self.paths.container(object_id).upper_dir,
                background,
                cache_s=60,
                disk_usage=disk_usage,
            ),
            inside=RuntimeUsages(
                self.containers, self.runtimes.__getitem__, background, cache_s=60
            ),
        )
        self.stats = PodStats(
            host=cast("Host", self.kernel),
            sandboxes=self.sandboxes,
            containers=self.containers,
            stats=self.container_stats,
            cgroups=cgroups,
            cgroup_paths=cgroup_paths,
            rates=rates,
            runtime_of=self.runtimes.__getitem__,
        )

    def pod(self, letter: str, *, parent: str = "", network: bool = True) -> Sandbox:
        """A ready pod whose cgroups, its own and its parent, use as much as the letter's place says."""
        sandbox = make_sandbox(letter * 64, name=letter)
        pause = self.kernel.spawn()
        netns = f"/netns/{letter}" if network else ""
        sandbox.record = msgspec.structs.replace(sandbox.record, cgroup_parent=parent, netns=netns)
        sandbox.status = SandboxStatus(
            ready_at_ns=1,
            process=Process(pause.pid, pause.start_ticks),
            attachments=(NetworkAttachment("loopback", "lo"), NetworkAttachment("pods", "net5")),
        )
        self.sandboxes.create(sandbox)
        directory = parent or "cri-shim"
        self.uses(f"{directory}/{sandbox.id}", 10)
        self.uses(directory, 1000)
        self.kernel.interfaces[Path(f"/netns/{letter}")] = [
            *(interface("lo"), interface("eth0", 2), interface("net5", 3)),
        ]
        return sandbox

    def container(self, pod: Sandbox, letter: str, status: ContainerStatus = RUNNING) -> Container:
        container = make_container(letter * 64, name=letter, sandbox_id=pod.id, status=status)
        parent = pod.record.cgroup_parent
        container.record = msgspec.structs.replace(container.record, cgroup_parent=parent)
        self.containers.create(container)
        self.paths.container(container.id).upper_dir.mkdir()
        self.uses(f"{parent or 'cri-shim'}/{container.id}", 100)
        return container

    def uses(self, cgroup_dir: str, amount: int) -> None:
        self.kernel.cgroups.stats[cgroup_dir.lstrip("/")] = CgroupStats(
            read_at_ns=5,
            cpu_usage_ns=amount,
            memory_usage_bytes=amount,
            working_set_bytes=amount,
            memory_limit_bytes=amount,
            pids_current=amount,
        )

    async def read(self, *pods: Sandbox) -> list[PodUsage]:
        return await self.stats.pod_sandbox_stats(pods)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_a_pod_with_a_cgroup_uses_what_that_uses(node: Node) -> None:
    pod = node.pod("a", parent="/kubepods/pod-a")
    other = node.pod("b", parent="/kubepods/pod-b")
    container = node.container(pod, "c")
    node.container(other, "d")
    [usage] = await node.read(pod)
    assert usage.sandbox is pod
    assert (usage.cgroup.cpu_usage_ns, usage.cgroup.pids_current) == (1000, 1000)
    assert usage.cgroup.memory_limit_bytes == 1000
    assert [each.container for each in usage.containers] == [container]


async def test_a_pod_in_a_shared_cgroup_uses_what_its_own_cgroups_use(node: Node) -> None:
    """Without a parent, with that of others, or with one that others' parents are below."""
    alone, other = node.pod("a"), node.pod("b", parent="/all/of/us")
    third, above = node.pod("c", parent="/all/of/us"), node.pod("d", parent="/all")
    for pod, name in ((alone, "1"), (other, "2"), (third, "3"), (above, "4")):
        node.container(pod, name)
        node.container(pod, name.translate(str.maketrans("1234", "5678")), EXITED)
    for usage in await node.read(alone, other, third, above):
        assert (usage.cgroup.cpu_usage_ns, usage.cgroup.pids_current) == (110, 110)
        assert usage.cgroup.memory_limit_bytes is None


async def test_a_pod_with_its_own_kernel_in_a_shared_cgroup_uses_what_its_runtime_says(
    node: Node,
) -> None:
    """The pause container's cgroup may count the containers once more; alone it is all that is known."""
    pod, empty = node.pod("a"), node.pod("b")
    container = node.container(pod, "1")
    for each in (pod, empty, container):
        each.record = msgspec.structs.replace(each.record, handler="vm")
    node.runtimes["vm"].containers[container.id] = Entry("running", node.kernel.spawn())
    node.runtimes["vm"].uses = RuntimeStats(pids=PidsUsage(current=7))
    usages = await node.read(pod, empty)
    assert [usage.cgroup.pids_current for usage in usages] == [7, 10]


async def test_an_earlier_sandbox_of_the_pod_does_not_share_its_cgroup(node: Node) -> None:
    former, pod = node.pod("a", parent="/kubepods/pod-a"), node.pod("b", parent="/kubepods/pod-a")
    node.sandboxes.update(former, former.status.stopped(9, "it ended"))
    [usage] = await node.read(former, pod)
    assert usage.sandbox is pod
    assert usage.cgroup.cpu_usage_ns == 1000


async def test_the_default_interface_is_that_of_the_first_network(node: Node) -> None:
    [usage] = await node.read(node.pod("a"))
    assert usage.network is not None
    assert usage.network.read_at_ns > 0
    assert usage.network.default == interface("net5", 3)
    assert usage.network.others == [interface("eth0", 2)]


async def test_a_pod_on_the_hosts_network_shows_none(node: Node) -> None:
    [usage] = await node.read(node.pod("a", network=False))
    assert usage.network is None


async def test_a_pod_that_stops_meanwhile_is_left_out(node: Node) -> None:
    gone, stays = node.pod("a", parent="/pod-a"), node.pod("b", parent="/pod-b")
    read_stats = node.kernel.cgroups.read_stats

    def stop_and_read(relative_dir: str) -> CgroupStats:
        node.sandboxes.note(gone, gone.status.stopped(9, "it ended"))
        return read_stats(relative_dir)

    node.kernel.cgroups.read_stats = stop_and_read  # type: ignore[method-assign]
    assert [usage.sandbox for usage in await node.read(gone, stays)] == [stays]
    assert await node.read(gone) == []


async def test_a_pod_whose_pause_process_is_gone_shows_no_network(node: Node) -> None:
    pod = node.pod("a")
    assert pod.status.process is not None
    node.kernel.end(pod.status.process.pid)
    [usage] = await node.read(pod)
    assert usage.network is None


async def test_containers_that_are_being_created_have_no_usage(node: Node) -> None:
    pod = node.pod("a")
    node.container(pod, "c", ContainerStatus())
    [usage] = await node.read(pod)
    assert usage.containers == []


async def test_rates_of_pods_and_containers_are_followed(node: Node) -> None:
    pod = node.pod("a", parent="/pod-a")
    container = node.container(pod, "c")
    [usage] = await node.read(pod)
    assert usage.cpu_nano_cores is None
    assert node.rates.followed == {pod.id, container.id}


async def test_a_pod_that_counts_no_cpu_has_no_rate(node: Node) -> None:
    pod = node.pod("a", parent="/pod-a")
    node.kernel.cgroups.stats["pod-a"] = CgroupStats(read_at_ns=5)
    [usage] = await node.read(pod)
    assert usage.cpu_nano_cores is None


async def test_a_crowd_of_interfaces_leaves_the_default_in_place() -> None:
    crowd = [interface(f"x{number}") for number in range(MAX_INTERFACES + 9)]
    network = network_usage([*crowd, interface("eth0", 7)], "eth0", 4)
    assert network is not None
    assert network.default == interface("eth0", 7)
    assert network.others == crowd[:MAX_INTERFACES]


async def test_without_the_expected_interface_the_first_is_the_default() -> None:
    network = network_usage([interface("lo"), interface("a"), interface("b")], "eth0", 4)
    assert network is not None
    assert (network.default.name, [each.name for each in network.others]) == ("a", ["b"])
    assert network_usage([interface("lo")], "eth0", 4) is None


async def test_a_sum_has_what_at_least_one_part_has() -> None:
    parts = [CgroupStats(5, cpu_usage_ns=1, rss_bytes=0), CgroupStats(7, cpu_usage_ns=2)]
    total = summed(parts)
    assert (total.read_at_ns, total.cpu_usage_ns, total.rss_bytes) == (7, 3, 0)
    assert total.page_faults is None
