"""What containers use: rates from two readings, layers read seldom, vanished ones left out."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.background import Background
from cri_shim.config.model import HandlerKind
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.host.tree import DiskUsage, disk_usage
from cri_shim.paths import Paths
from cri_shim.sandbox.cpu_rates import CpuRates
from cri_shim.sandbox.layer_usage import PATIENCE_S, LayerUsages
from cri_shim.sandbox.runtime_usage import RuntimeUsages
from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
from cri_shim.sandbox.stats import Stats
from cri_shim.sandbox.store.model import ContainerStatus
from cri_shim.sandbox.store.store import Container, Store, read_container
from tests.fakes.clock import until
from tests.fakes.kernel import FakeCgroups, Kernel
from tests.fakes.points import Points
from tests.fakes.runtime import FakeRuntime
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cri_shim.host.cgroups.tree import Cgroups
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio
RUNNING = ContainerStatus(committed_at_ns=1, started_at_ns=2)
EXITED = ContainerStatus(committed_at_ns=1, started_at_ns=2, finished_at_ns=3)
SECOND = 1_000_000_000


class Node:
    """Containers with writable layers and cgroups."""

    def __init__(self, base: Path, cache_s: float) -> None:
        self.paths = Paths(base / "root", base / "state")
        self.paths.containers_dir.mkdir(parents=True)
        self.store: Store[Container] = Store(
            "container", self.paths.containers_dir, self.paths.container, read_container
        )
        kernel = Kernel(Points())
        self.cgroups: FakeCgroups = kernel.cgroups
        self.walk: Callable[[Path, Callable[[], bool]], DiskUsage] = disk_usage
        background = Background()
        self.rates = CpuRates(self.cgroups.cpu_usage_ns, background)
        self.runtimes = {
            "runc": FakeRuntime(kernel),
            "vm": FakeRuntime(kernel, "vm", HandlerKind.VM),
        }
        self.stats = Stats(
            paths=self.paths,
            store=self.store,
            cgroups=cast("Cgroups", self.cgroups),
            cgroup_paths=CgroupPaths(systemd=False, default_parent=""),
            rates=self.rates,
            layers=LayerUsages(
                self.store,
                lambda object_id: self.paths.container(object_id).upper_dir,
                background,
                cache_s=cache_s,
                disk_usage=lambda path, goes_on: self.walk(path, goes_on),
            ),
            inside=RuntimeUsages(
                self.store, self.runtimes.__getitem__, background, cache_s=cache_s
            ),
        )

    def add(self, letter: str, status: ContainerStatus = RUNNING) -> Container:
        container = make_container(letter * 64, name=letter, status=status)
        self.store.create(container)
        upper = self.paths.container(container.id).upper_dir
        upper.mkdir()
        (upper / "file").write_bytes(b"x" * 8192)
        return container

    def read_cpu(self, container: Container, at_s: float, usage_s: float | None) -> None:
        self.cgroups.stats[f"cri-shim/{container.id}"] = CgroupStats(
            read_at_ns=int(at_s * SECOND),
            cpu_usage_ns=None if usage_s is None else int(usage_s * SECOND),
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, cache_s=60)


async def test_a_running_container_shows_its_cgroup_and_its_layer(node: Node) -> None:
    container = node.add("a")
    node.read_cpu(container, 1, 5)
    [usage] = await node.stats.container_stats([container])
    assert usage.container is container
    assert usage.cgroup is not None
    assert usage.cgroup.cpu_usage_ns == 5 * SECOND
    assert (usage.layer_bytes or 0) >= 8192
    assert usage.layer_inodes == 2
    assert usage.layer_read_at_ns > 0
    assert usage.writable_layer == node.paths.container(container.id).upper_dir


async def test_an_exited_container_shows_its_layer_alone(node: Node) -> None:
    [usage] = await node.stats.container_stats([node.add("a", EXITED)])
    assert usage.cgroup is None
    assert usage.cpu_nano_cores is None
    assert (usage.layer_bytes or 0) >= 8192


async def test_a_rate_is_that_of_the_samples(node: Node, clock: MovableClock) -> None:
    container = node.add("a")
    node.read_cpu(container, time.time() - 10, 1)
    assert (await node.stats.container_stats([container]))[0].cpu_nano_cores is None
    node.read_cpu(container, time.time(), 6)
    await clock.sleep(1)
    [usage] = await node.stats.container_stats([container])
    assert usage.cpu_nano_cores == pytest.approx(SECOND / 2, rel=0.2)
    assert node.rates.followed == {container.id}


async def test_a_node_that_counts_no_cpu_gives_no_rate(node: Node) -> None:
    container = node.add("a")
    node.read_cpu(container, 10, None)
    [usage] = await node.stats.container_stats([container])
    assert usage.cpu_nano_cores is None
    assert node.rates.followed == frozenset()


async def test_a_layer_is_walked_once_in_a_while(node: Node) -> None:
    walks: list[Path] = []

    def count(path: Path, goes_on: Callable[[], bool]) -> DiskUsage:
        walks.append(path)
        return DiskUsage(len(walks), 1)

    node.walk = count
    container = node.add("a", EXITED)
    first, second = [(await node.stats.container_stats([container]))[0] for _ in range(2)]
    assert first.layer_bytes == second.layer_bytes == 1
    assert first.layer_read_at_ns == second.layer_read_at_ns
    assert len(walks) == 1


async def test_a_layer_is_walked_again_when_the_last_look_is_old(tmp_path: Path) -> None:
    node = Node(tmp_path, cache_s=-1)
    container = node.add("a", EXITED)
    [before] = await node.stats.container_stats([container])
    (node.paths.container(container.id).upper_dir / "more").write_bytes(b"x" * 8192)
    [after] = await node.stats.container_stats([container])
    assert (after.layer_bytes or 0) > (before.layer_bytes or 0)


async def test_a_container_that_vanishes_is_left_out(node: Node) -> None:
    gone, there = node.add("a", EXITED), node.add("b", EXITED)
    upper = node.paths.container(gone.id).upper_dir
    (upper / "file").unlink()
    upper.rmdir()
    usages = await node.stats.container_stats([gone, there])
    assert [usage.container for usage in usages] == [there]


async def test_all_layers_are_summed(node: Node) -> None:
    assert await node.stats.layers_usage() == DiskUsage(0, 0)
    node.add("a", EXITED)
    node.add("b", EXITED)
    total = await node.stats.layers_usage()
    assert total.inodes == 4
    assert total.used_bytes >= 16384


async def test_what_is_kept_of_removed_containers_goes_with_the_next_reading(node: Node) -> None:
    gone, stays = node.add("a"), node.add("b")
    for container in (gone, stays):
        node.read_cpu(container, 1, 1)
    before = await node.stats.container_stats([gone, stays])
    node.store.forget(gone)
    after = await node.stats.container_stats([stays])
    assert node.stats.remembered == {stays.id}
    # What there is of the others stays.
    assert after[0].layer_read_at_ns == before[1].layer_read_at_ns


async def test_a_container_that_takes_the_place_of_another_leaves_no_more_than_one_behind(
    node: Node,
) -> None:
    for letter in "abcdef":
        container = node.add(letter, EXITED)
        await node.stats.container_stats([container])
        node.store.forget(container)
    await node.stats.container_stats([])
    assert node.stats.remembered == frozenset()


async def test_a_layer_that_is_not_measured_yet_is_no_reason_to_say_nothing(
    node: Node, clock: MovableClock
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def hang(path: Path, goes_on: Callable[[], bool]) -> DiskUsage:
        begun.set()
        may_end.wait(20)
        return DiskUsage(1, 1)

    node.walk = hang
    container = node.add("a")
    node.read_cpu(container, 1, 5)
    asking = asyncio.ensure_future(node.stats.container_stats([container]))
    await until(begun.is_set)
    clock.move(PATIENCE_S)
    [usage] = await asking
    assert (usage.layer_bytes, usage.layer_inodes) == (None, None)
    assert usage.cgroup is not None
    assert await node.stats.layers_usage() == DiskUsage(0, 0)
    may_end.set()
