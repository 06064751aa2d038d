"""Whose turn it is: one operation per container, garbage collection alone on its network."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.operation_locks import OperationLocks
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from collections.abc import Coroutine

pytestmark = pytest.mark.asyncio


class Scene:
    """Operations that last until they are let go, and the order in which they began and ended."""

    def __init__(self) -> None:
        self.locks = OperationLocks()
        self.told: list[str] = []
        self.go = asyncio.Event()

    async def operate(self, name: str, container: str, network: str = "pods") -> None:
        async with self.locks.operation(container, network):
            self.told.append(f"{name} begins")
            await self.go.wait()
            self.told.append(f"{name} ends")

    async def collect(self, network: str = "pods", *, patience_s: float = 5) -> None:
        async with self.locks.collection(network, patience_s=patience_s):
            self.told.append("gc begins")
            await self.go.wait()
            self.told.append("gc ends")


async def _outcome(work: Coroutine[object, object, None]) -> BaseException | None:
    try:
        await work
    except TimeoutError as error:
        return error
    return None


async def test_different_containers_go_side_by_side_and_one_containers_operations_follow() -> None:
    scene = Scene()
    async with asyncio.TaskGroup() as group:
        for name, container in (("first", "a"), ("second", "a"), ("third", "b")):
            group.create_task(scene.operate(name, container))
            await turn_over()
        assert scene.told == ["first begins", "third begins"]
        scene.go.set()
    assert scene.told.index("first ends") < scene.told.index("second begins")


async def test_a_collection_waits_for_what_runs_and_holds_up_what_comes() -> None:
    scene = Scene()
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.operate("first", "a"))
        await turn_over()
        group.create_task(scene.collect())
        await turn_over()
        assert scene.told == ["first begins"]
        scene.go.set()
        await turn_over()
        scene.go.clear()
        assert scene.told[:2] == ["first begins", "first ends"]
    scene = Scene()
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.collect())
        await turn_over()
        group.create_task(scene.operate("late", "b"))
        group.create_task(scene.operate("elsewhere", "c", "storage"))
        await turn_over()
        assert scene.told == ["gc begins", "elsewhere begins"]
        scene.go.set()
    assert scene.told.index("gc ends") < scene.told.index("late begins")


async def test_a_waiting_collection_keeps_nobody_waiting_and_gives_up() -> None:
    scene = Scene()
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.operate("first", "a"))
        await turn_over()
        waiting = group.create_task(_outcome(scene.collect(patience_s=0.05)))
        await turn_over()
        group.create_task(scene.operate("second", "b"))
        await turn_over()
        assert scene.told == ["first begins", "second begins"]
        assert isinstance(await waiting, TimeoutError)
        scene.go.set()
    assert "gc begins" not in scene.told


async def test_collections_of_one_network_follow_each_other() -> None:
    scene = Scene()
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.collect())
        group.create_task(scene.collect())
        await turn_over()
        assert scene.told == ["gc begins"]
        scene.go.set()
    assert scene.told == ["gc begins", "gc ends"] * 2


async def test_a_failure_inside_ends_the_turn() -> None:
    locks = OperationLocks()
    with pytest.raises(ValueError, match="no"):
        async with locks.collection("pods", patience_s=1):
            raise ValueError("no")
    with pytest.raises(ValueError, match="no"):
        async with locks.operation("a", "pods"):
            raise ValueError("no")
    async with locks.collection("pods", patience_s=0.01):
        await asyncio.sleep(0)
