"""Writable layers measured: once for all who ask, and never for longer than anybody wants to wait."""

from __future__ import annotations

import asyncio
import string
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.background import Background
from cri_shim.host.tree import DiskUsage
from cri_shim.paths import Paths
from cri_shim.sandbox import layer_usage
from cri_shim.sandbox.layer_usage import AT_ONCE, LayerUsages
from cri_shim.sandbox.store.store import Container, Store, read_container
from tests.fakes.clock import turn_over, until
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Node:
    """Containers whose layers' walks last until they are told to end."""

    def __init__(self, base: Path) -> None:
        paths = Paths(base / "root", base / "state")
        paths.containers_dir.mkdir(parents=True)
        self._store: Store[Container] = Store(
            "container", paths.containers_dir, paths.container, read_container
        )
        self.background = Background()
        self.usages = LayerUsages(
            self._store, Path, self.background, cache_s=-1, disk_usage=self._walk
        )
        self.gone: set[str] = set()
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.hanging: dict[str, threading.Event] = {}

    def _walk(self, path: Path, goes_on: Callable[[], bool]) -> DiskUsage:
        name = path.name[0]
        if name in self.gone:
            raise FileNotFoundError(path)
        self.begun[name] += 1
        if name in self.hanging:
            while goes_on() and not self.hanging[name].wait(0.005):
                pass
        self.ended[name] += 1
        return DiskUsage(self.begun[name], 1)

    def add(self, name: str, pod: str = "", *, hangs: bool = False) -> Container:
        container = make_container(name * 64, name=name, sandbox_id=(pod or name) * 64)
        self._store.create(container)
        if hangs:
            self.hanging[name] = threading.Event()
        return container

    async def used_of_some(self, clock: MovableClock, *containers: Container) -> list[int | None]:
        """As `used`, when some walks hang: their time passes at once."""
        asking = asyncio.ensure_future(self.used(*containers))
        await until(lambda: asking.done() or self.is_only_hanging)
        await clock.until(
            asking.done, within_s=2 * layer_usage.PATIENCE_S, in_spite_of_threads=True
        )
        return await asking

    @property
    def is_only_hanging(self) -> bool:
        """Whether no walk is under way but those that hang."""
        under_way = self.begun - self.ended
        return bool(under_way) and under_way.keys() <= self.hanging.keys()

    async def used(self, *containers: Container) -> list[int | None]:
        found = await self.usages.of(containers)
        return [usage.used_bytes if usage else None for usage in found.values()]


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    await made.background.close(0)
    await until(lambda: made.begun == made.ended)


async def test_all_who_ask_at_a_time_share_one_walk(node: Node) -> None:
    container = node.add("a", hangs=True)
    asking = [asyncio.ensure_future(node.used(container)) for _ in range(5)]
    await until(lambda: node.begun["a"])
    node.hanging["a"].set()
    assert await asyncio.gather(*asking) == [[1]] * 5
    assert node.begun["a"] == 1


async def test_the_walks_of_a_full_node_do_not_all_begin_in_one_turn(node: Node) -> None:
    containers = [node.add(letter) for letter in string.ascii_letters]
    asking = asyncio.ensure_future(node.used(*containers))
    await asyncio.sleep(0)
    assert 0 < len(node.background.tasks) <= len(containers) / 3
    assert await asking == [1] * len(containers)


async def test_a_layer_without_end_holds_up_no_other(node: Node, clock: MovableClock) -> None:
    endless = [node.add(letter, hangs=True) for letter in "123456"[: AT_ONCE - 1]]
    assert await node.used_of_some(clock, *endless) == [None] * len(endless)
    other = node.add("a")
    for count in (1, 2, 3):
        # The endless ones have been waited for once.
        assert await node.used(*endless, other) == [*[None] * len(endless), count]
    assert set(node.begun.values()) == {1, 3}


async def test_one_of_a_pod_is_walked_at_a_time(node: Node, clock: MovableClock) -> None:
    first, second = (node.add(name, pod="p", hangs=True) for name in "12")
    other = node.add("a")
    asking = asyncio.ensure_future(node.used(first, second, other))
    await until(lambda: node.ended["a"] and node.begun["1"])
    clock.move(layer_usage.PATIENCE_S)
    assert await asking == [None, None, 1]
    assert node.begun == {"1": 1, "a": 1}


async def test_what_took_long_is_not_waited_for_again_and_has_a_rest(
    node: Node, clock: MovableClock
) -> None:
    container = node.add("a", hangs=True)
    asking = asyncio.ensure_future(node.used(container))
    await until(lambda: node.begun["a"] == 1)
    clock.move(layer_usage.LONG_S)
    node.hanging["a"].set()
    assert await asking == [1]
    node.hanging["a"] = threading.Event()
    assert await node.used(container) == [1]
    assert node.begun["a"] == 1
    clock.move(5 * layer_usage.LONG_S)
    assert await node.used(container) == [1]
    assert node.begun["a"] == 1
    clock.move(10 * layer_usage.LONG_S)
    assert await node.used(container) == [1]
    await until(lambda: node.begun["a"] == 2)
    clock.move(layer_usage.LONG_S)
    node.hanging["a"].set()
    await until(lambda: node.ended["a"] == 2)
    await turn_over()
    assert await node.used(container) == [2]


async def test_a_walk_ends_in_the_end_and_what_it_counted_counts(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_usage, "MAX_WALK_S", 0.1)
    assert await node.used(node.add("a", hangs=True)) == [1]


async def test_what_vanished_is_missing(node: Node) -> None:
    container = node.add("a")
    assert await node.used(container) == [1]
    node.gone.add("a")
    assert await node.used(container) == []


async def test_the_daemons_end_waits_for_no_walk(node: Node) -> None:
    asking = asyncio.ensure_future(node.used(node.add("a", hangs=True)))
    await until(lambda: node.begun["a"])
    await node.background.close(20)
    assert await asking == []
