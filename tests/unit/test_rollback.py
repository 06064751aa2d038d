"""Undo steps: their order, their failures, and cancellation while they run."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

import pytest

from cri_shim.operations import Operations
from cri_shim.rollback import Rollback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.conftest import Observe


def undo(log: list[str], name: str, *, fail: bool = False) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await asyncio.sleep(0)
        log.append(name)
        if fail:
            raise OSError(f"{name} can't be undone")

    return run


@pytest.mark.asyncio
async def test_a_commit_leaves_every_effect_in_place() -> None:
    log: list[str] = []
    async with Rollback("thing") as rollback:
        rollback.push("one", undo(log, "one"))
        rollback.commit()
    assert log == []


@pytest.mark.asyncio
async def test_a_failure_undoes_in_reverse_and_keeps_the_cause() -> None:
    log: list[str] = []
    rollback = Rollback("thing")

    async def create() -> None:
        async with rollback:
            rollback.push("one", undo(log, "one"))
            rollback.push("two", undo(log, "two"))
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        await create()
    assert log == ["two", "one"]
    assert rollback.failed == []


@pytest.mark.asyncio
async def test_leaving_without_a_commit_undoes() -> None:
    log: list[str] = []
    async with Rollback("thing") as rollback:
        rollback.push("one", undo(log, "one"))
    assert log == ["one"]


@pytest.mark.asyncio
async def test_a_failing_undo_neither_stops_the_others_nor_replaces_the_cause() -> None:
    log: list[str] = []
    rollback = Rollback("thing")

    async def create() -> None:
        async with rollback:
            rollback.push("one", undo(log, "one"))
            rollback.push("two", undo(log, "two", fail=True))
            rollback.push("three", undo(log, "three"))
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        await create()
    assert log == ["three", "two", "one"]
    assert rollback.failed == ["two"]


@pytest.mark.asyncio
async def test_cancellations_during_the_unwinding_wait_until_it_is_done() -> None:
    log: list[str] = []
    unwinding = asyncio.Event()
    go_on = asyncio.Event()

    async def slow() -> None:
        unwinding.set()
        await go_on.wait()
        log.append("slow")

    async def create() -> None:
        async with Rollback("thing") as rollback:
            rollback.push("first", undo(log, "first"))
            rollback.push("slow", slow)
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(create())
        await asyncio.sleep(0)
        task.cancel()
        await unwinding.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
    assert task.cancelled()
    assert log == ["slow", "first"]


@pytest.mark.asyncio
async def test_the_observer_is_told_each_step_before_its_effect(observe: Observe) -> None:
    seen: list[tuple[str, str]] = []
    observe(lambda what, step: seen.append((what, step)))
    log: list[str] = []
    async with Rollback("thing") as rollback:
        rollback.push("one", undo(log, "one"))
        assert seen == [("thing", "one")]
        rollback.commit()
    assert seen == [("thing", "one"), ("thing", "commit")]


@pytest.mark.asyncio
async def test_an_observer_that_raises_has_the_step_undone(observe: Observe) -> None:
    def stop(_what: str, step: str) -> None:
        if step == "two":
            raise RuntimeError("stopped here")

    observe(stop)
    log: list[str] = []

    async def create() -> None:
        async with Rollback("thing") as rollback:
            rollback.push("one", undo(log, "one"))
            rollback.push("two", undo(log, "two"))

    with pytest.raises(RuntimeError, match="stopped here"):
        await create()
    assert log == ["two", "one"]


@pytest.mark.asyncio
async def test_a_cancellation_during_the_unwinding_of_no_failure_is_raised_after_it() -> None:
    log: list[str] = []
    unwinding = asyncio.Event()

    async def slow() -> None:
        unwinding.set()
        await asyncio.sleep(0)
        log.append("slow")

    async def abandon() -> None:
        async with Rollback("thing") as rollback:
            rollback.push("slow", slow)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(abandon())
        await unwinding.wait()
        task.cancel()
    assert task.cancelled()
    assert log == ["slow"]


@pytest.mark.asyncio
async def test_a_failure_that_is_being_undone_is_not_replaced_by_a_cancellation() -> None:
    unwinding = asyncio.Event()

    async def slow() -> None:
        unwinding.set()
        await asyncio.sleep(0)

    async def fail() -> None:
        async with Rollback("thing") as rollback:
            rollback.push("slow", slow)
            raise ValueError("the cause")

    async def cancel_in_the_middle() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(fail())
            await unwinding.wait()
            task.cancel()

    with pytest.raises(ExceptionGroup) as caught:
        await cancel_in_the_middle()
    assert [str(error) for error in caught.value.exceptions] == ["the cause"]


@pytest.mark.asyncio
async def test_the_operation_under_way_says_which_effect_was_begun_and_which_is_undone() -> None:
    operations = Operations()
    seen: list[str] = []

    def look() -> None:
        [view] = operations.under_way("1a")
        seen.extend(each.name for each in view.steps)

    async def undo() -> None:
        look()

    with operations.begin("RunPodSandbox", "web"):
        async with Rollback("sandbox 1a") as rollback:
            rollback.push("netns", undo)
            look()
    assert seen == ["netns", "undoing netns"]


@pytest.mark.asyncio
async def test_after_a_commit_nothing_is_kept_for_an_undoing() -> None:
    async with Rollback("thing") as rollback:
        needed = undo([], "one")
        rollback.push("one", needed)
        rollback.commit()
    kept = weakref.ref(needed)
    del needed
    assert kept() is None
