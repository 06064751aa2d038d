"""Work that recovery leaves for single objects: who waits for it, and for how long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cri_shim.background import Background
from cri_shim.ids import new_id
from cri_shim.operations import Operations, step
from cri_shim.sandbox.recovery import unfinished as module
from cri_shim.sandbox.recovery.unfinished import Unfinished
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


@pytest.fixture
def background() -> Background:
    return Background()


@pytest.fixture
def unfinished(background: Background) -> Unfinished:
    return Unfinished(background, Operations())


def waiting(
    event: asyncio.Event, *, name: str = "standing still"
) -> Callable[[], Coroutine[object, object, str]]:
    async def work() -> str:
        with step(name):
            await event.wait()
        return "done"

    return work


async def test_with_nothing_to_do_nobody_waits(unfinished: Unfinished) -> None:
    assert await unfinished.settled() == 0


async def test_what_moves_from_step_to_step_is_waited_for_however_long_it_takes(
    unfinished: Unfinished, clock: MovableClock
) -> None:
    steps = 0

    async def work() -> str:
        nonlocal steps
        for number in range(30):
            with step(f"step {number}"):
                await asyncio.sleep(module.PATIENCE_S / 10)
            steps += 1
        return "done"

    unfinished.add("sandbox", new_id(), work, overdue=pytest.fail)
    settled = asyncio.ensure_future(unfinished.settled())
    await clock.until(settled.done, within_s=module.ALL_PATIENCE_S)
    assert await settled == 0
    assert (steps, dict(unfinished.outcomes)) == (30, {"sandbox done": 1})


async def test_what_stands_still_is_told_once_and_goes_on(
    unfinished: Unfinished, clock: MovableClock
) -> None:
    go, told = asyncio.Event(), list[str]()
    unfinished.add("sandbox", new_id(), waiting(go), overdue=told.append)
    settled = asyncio.ensure_future(unfinished.settled())
    await clock.until(settled.done, within_s=2 * module.PATIENCE_S)
    assert await settled == 1
    assert told == [f"still being recovered: standing still for {module.PATIENCE_S:.1f} s"]
    await clock.sleep(3 * module.PATIENCE_S)
    assert len(told) == 1
    go.set()
    await turn_over()
    assert (await unfinished.settled(), dict(unfinished.outcomes)) == (0, {"sandbox done": 1})


async def test_a_turn_is_given_back_once(
    unfinished: Unfinished, background: Background, clock: MovableClock
) -> None:
    go = asyncio.Event()
    for _ in range(3 * module.AT_ONCE):
        unfinished.add("sandbox", new_id(), waiting(go))
    settled = asyncio.ensure_future(unfinished.settled())
    await clock.until(settled.done, within_s=10 * module.PATIENCE_S)
    assert await settled == 3 * module.AT_ONCE
    go.set()
    await turn_over()
    assert unfinished.outcomes == {"sandbox done": 3 * module.AT_ONCE}
    begun = 0

    async def work() -> str:
        nonlocal begun
        begun += 1
        await asyncio.Event().wait()
        return "never"

    for _ in range(2 * module.AT_ONCE):
        unfinished.add("sandbox", new_id(), work)
    await turn_over()
    assert begun == module.AT_ONCE
    await background.close(0)


async def test_a_failure_is_counted_and_stops_nothing(unfinished: Unfinished) -> None:
    async def work() -> str:
        raise OSError("broken disk")

    unfinished.add("container", new_id(), work)
    go = asyncio.Event()
    go.set()
    unfinished.add("container", new_id(), waiting(go))
    assert await unfinished.settled() == 0
    assert unfinished.outcomes == {"container failed": 1, "container done": 1}
