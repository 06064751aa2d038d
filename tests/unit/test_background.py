"""Tasks nobody waits for, work that outlives its caller or is done until it succeeds, two things side by side."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from cri_shim import background as background_module
from cri_shim.background import (
    Background,
    end_of,
    for_each,
    one_by_one,
    settled,
    side_by_side,
    undivided,
    uninterrupted,
    until_done,
)
from cri_shim.errors import CriShimError, DeadlineError, forget_frames
from tests.fakes.clock import turn_over, until


async def hangs() -> None:
    await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_side_by_side_runs_both_and_returns_the_second() -> None:
    met = asyncio.Barrier(2)

    async def first() -> None:
        await met.wait()

    async def second() -> int:
        await met.wait()
        return 7

    assert await side_by_side(first(), second()) == 7


@pytest.mark.asyncio
async def test_an_error_of_side_by_side_keeps_its_cause() -> None:
    cause = OSError("full")

    async def failing() -> None:
        raise CriShimError("doing") from cause

    with pytest.raises(CriShimError) as raised:
        await side_by_side(hangs(), failing())
    assert raised.value.__cause__ is cause


@pytest.mark.asyncio
async def test_side_by_side_raises_the_first_error_bare_after_cancelling_the_other() -> None:
    cancelled = False

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    async def hangs() -> int:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise
        return 0

    with pytest.raises(ValueError, match="first"):
        await side_by_side(fails(), hangs())
    assert cancelled


@pytest.mark.asyncio
async def test_an_error_of_side_by_side_keeps_nothing_once_its_frames_are_forgotten() -> None:
    kept: list[weakref.ref[object]] = []

    async def fails() -> int:
        used = asyncio.Event()
        kept.append(weakref.ref(used))
        raise CriShimError("for no reason")

    gc.disable()
    try:
        with pytest.raises(CriShimError) as raised:
            await side_by_side(hangs(), fails())
        assert kept[0]() is not None
        forget_frames(raised.value)
        del raised
        assert kept[0]() is None
    finally:
        gc.enable()


@pytest.mark.asyncio
async def test_background_failures_hurt_nobody_else() -> None:
    background = Background()
    done: list[str] = []

    async def fails() -> None:
        raise ValueError("alone")

    async def works() -> None:
        done.append("works")

    background.start("fails", fails())
    background.start("works", works())
    await background.close(1)
    assert done == ["works"]


@pytest.mark.asyncio
async def test_background_close_cancels_what_does_not_end() -> None:
    background = Background()
    ended: list[str] = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    background.start("hangs", hangs())
    await asyncio.sleep(0)
    await background.close(0.01)
    assert ended == ["cancelled"]


# --- work of its own that somebody waits for ---------------------------------------------------------------------


@pytest.mark.asyncio
async def test_what_owned_work_returns_or_raises_reaches_the_caller() -> None:
    background = Background()

    async def works() -> int:
        await asyncio.sleep(0)
        return 7

    async def fails() -> int:
        raise ValueError("no")

    assert await background.owned("works", works()) == 7
    with pytest.raises(ValueError, match="no"):
        await background.owned("fails", fails())


@pytest.mark.asyncio
async def test_owned_work_goes_on_when_its_caller_goes_away() -> None:
    background = Background()
    go, done = asyncio.Event(), asyncio.Event()

    async def works() -> None:
        await go.wait()
        done.set()

    caller = asyncio.ensure_future(background.owned("works", works()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not done.is_set()
    go.set()
    await background.close(5)
    assert done.is_set()


@pytest.mark.asyncio
async def test_a_failure_of_owned_work_is_logged_by_nobody_but_its_caller() -> None:
    background = Background()
    go = asyncio.Event()

    async def fails() -> None:
        await go.wait()
        raise ValueError("nobody hears it")

    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
    caller = asyncio.ensure_future(background.owned("fails", fails()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    go.set()
    with capture_logs() as logs:
        await background.close(5)
        del caller
        gc.collect()
        await asyncio.sleep(0)
    assert (complaints, logs) == ([], [])


@pytest.mark.asyncio
async def test_close_cancels_owned_work_that_does_not_end() -> None:
    background = Background()
    ended: list[str] = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    caller = asyncio.ensure_future(background.owned("hangs", hangs()))
    await asyncio.sleep(0)
    await background.close(0.01)
    assert ended == ["cancelled"]
    with pytest.raises(asyncio.CancelledError):
        await caller


# --- until it succeeds -------------------------------------------------------------------------------------------


class Stubborn:
    """Work that fails in the given ways before it succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.tries = 0

    async def work(self) -> None:
        self.tries += 1
        if self._failures:
            raise self._failures.pop(0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, all of them over at once."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(background_module, "asyncio", SimpleNamespace(sleep=pause))
    return made


@pytest.mark.asyncio
async def test_what_succeeds_is_done_once_and_without_a_pause(pauses: list[float]) -> None:
    stubborn = Stubborn()
    with capture_logs() as logs:
        await until_done("it", stubborn.work)
    assert (stubborn.tries, pauses, logs) == (1, [], [])


@pytest.mark.asyncio
async def test_what_fails_is_done_again_with_growing_pauses_of_at_most_half_a_minute(
    pauses: list[float],
) -> None:
    stubborn = Stubborn(*(DeadlineError("busy") for _ in range(9)))
    await until_done("it", stubborn.work)
    assert stubborn.tries == 10
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.asyncio
async def test_each_kind_of_failure_is_logged_once(pauses: list[float]) -> None:
    busy, disk = CriShimError("busy"), OSError(5, "disk")
    with capture_logs() as logs:
        await until_done("releasing", Stubborn(busy, busy, disk, disk, busy).work)
    assert [(line["what"], line["error"]) for line in logs] == [
        ("releasing", "busy"),
        ("releasing", "[Errno 5] disk"),
        ("releasing", "busy"),
    ]
    assert len(pauses) == 5


@pytest.mark.asyncio
async def test_a_mistake_in_the_program_is_not_tried_again(pauses: list[float]) -> None:
    stubborn = Stubborn(KeyError("typo"))
    with pytest.raises(KeyError):
        await until_done("it", stubborn.work)
    assert (stubborn.tries, pauses) == (1, [])


@pytest.mark.asyncio
async def test_what_never_succeeds_ends_with_its_owner() -> None:
    background = Background()
    stubborn = Stubborn(*(CriShimError("busy") for _ in range(1000)))
    background.start("it", until_done("it", stubborn.work, first_pause_s=0.001))
    await asyncio.sleep(0)
    await background.close(0)
    assert stubborn.tries == 1
    await turn_over()
    assert stubborn.tries == 1


# --- effects in threads ------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_cancellation_waits_for_the_effect_in_the_thread() -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    done: list[str] = []

    def effect() -> str:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(5)
        done.append("effect")
        return "result"

    async with asyncio.TaskGroup() as group:
        task = group.create_task(uninterrupted(effect))
        await begun.wait()
        task.cancel()
        await turn_over()
        task.cancel()
        await turn_over()
        assert not task.done()
        go_on.set()
    assert task.cancelled()
    assert done == ["effect"]


@pytest.mark.asyncio
async def test_what_the_effect_returns_or_raises_reaches_the_caller() -> None:
    assert await uninterrupted(int, "7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await uninterrupted(int, "seven")


@pytest.mark.asyncio
async def test_a_failure_of_the_effect_after_a_cancellation_is_no_news() -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, about: complaints.append(about))

    def effect() -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(5)
        raise OSError("no mount after all")

    task = asyncio.ensure_future(uninterrupted(effect))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    assert complaints == []


@pytest.mark.asyncio
async def test_what_has_no_end_is_ended_at_once_by_close_and_its_mistakes_are_logged() -> None:
    background = Background()
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def broken() -> None:
        raise ValueError("typo")

    background.keep("endless", endless())
    with capture_logs() as logs:
        background.keep("broken", broken())
        await turn_over()
        async with asyncio.timeout(5):
            await background.close(60)
    assert ended.is_set()
    assert [line["work"] for line in logs] == ["broken"]


@pytest.mark.asyncio
async def test_a_cancellation_waits_for_the_work_and_for_what_follows() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        go_on.wait(10)
        done.append("work")

    task = asyncio.get_running_loop().create_task(undivided(work, lambda: done.append("then")))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["work", "then"]


@pytest.mark.asyncio
async def test_what_follows_is_left_out_when_the_work_fails() -> None:
    followed = False

    def follow() -> None:
        nonlocal followed
        followed = True

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await undivided(fail, follow)
    assert not followed


@pytest.mark.asyncio
async def test_a_wait_that_is_cancelled_leaves_its_future_alone() -> None:
    future = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(settled(future))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not future.cancelled()
    future.set_result(None)
    assert await settled(future)


@pytest.mark.asyncio
async def test_a_wait_ends_with_its_time_or_with_its_future() -> None:
    future = asyncio.get_running_loop().create_future()
    assert not await settled(future, 0.0)
    asyncio.get_running_loop().call_soon(future.set_exception, OSError("its own business"))
    assert await settled(future, 60.0)
    assert isinstance(future.exception(), OSError)


@pytest.mark.asyncio
async def test_a_cancellation_is_told_after_the_end_and_only_once() -> None:
    future = asyncio.get_running_loop().create_future()
    told: list[asyncio.CancelledError | None] = []

    async def wait() -> None:
        told.append(await end_of(future))

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    future.set_result(None)
    await waiting
    assert [type(each) for each in told] == [asyncio.CancelledError]


@pytest.mark.asyncio
async def test_work_is_begun_in_order_and_no_more_at_once_than_told() -> None:
    begun: list[int] = []
    gates = [asyncio.Event() for _ in range(4)]

    async def work(number: int) -> None:
        begun.append(number)
        await gates[number].wait()

    doing = asyncio.ensure_future(for_each(range(4), work, at_once=2))
    await until(lambda: begun == [0, 1])
    gates[1].set()
    await until(lambda: begun == [0, 1, 2])
    for gate in gates:
        gate.set()
    await doing
    assert begun == [0, 1, 2, 3]


@pytest.mark.asyncio
async def test_a_failure_ends_the_rest() -> None:
    begun: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        raise ValueError(number)

    with pytest.raises(ExceptionGroup):
        await for_each(range(9), work, at_once=1)
    assert begun == [0]


@pytest.mark.asyncio
async def test_nothing_to_do_is_done_at_once() -> None:
    await for_each((), asyncio.sleep, at_once=3)


@pytest.mark.asyncio
async def test_one_by_one_begins_the_second_when_the_first_has_succeeded() -> None:
    seen: list[str] = []

    async def first(*, fails: bool) -> None:
        seen.append("first begins")
        await asyncio.sleep(0)
        seen.append("first ends")
        if fails:
            raise ValueError("first")

    async def second() -> str:
        seen.append("second")
        return "done"

    assert await one_by_one(first(fails=False), second()) == "done"
    assert seen == ["first begins", "first ends", "second"]
    with pytest.raises(ValueError, match="first"):
        await one_by_one(first(fails=True), second())
    assert seen.count("second") == 1
