"""Calls that hang, in a thread: given up at the deadline, never waited for, and no reason for others to wait."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

import pytest
from structlog.testing import capture_logs

from cri_shim import kernel_call
from cri_shim.errors import DeadlineError, UnavailableError
from cri_shim.kernel_call import (
    LONG_TIMEOUT_S,
    MAX_UNANSWERED,
    TIMEOUT_S,
    at_length_for,
    in_time,
    in_time_for,
    mount_of,
    mount_points,
    unanswered,
    working_on,
)
from cri_shim.operations import Operations
from tests.fakes.clock import block_until, turn_over, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio
T = TypeVar("T")


async def given_up(clock: MovableClock, call: Awaitable[T]) -> T:
    """What comes of calls that hang for longer than any deadline."""
    waiting = asyncio.ensure_future(call)
    await clock.until(waiting.done, within_s=2 * LONG_TIMEOUT_S, in_spite_of_threads=True)
    return await waiting


async def test_its_result_and_its_error_are_the_callers() -> None:
    assert await in_time("adding", lambda a, b: a + b, 2, b=3) == 5

    def fails() -> None:
        raise OSError(5, "Input/output error", "/x")

    with pytest.raises(OSError, match="/x"):
        await in_time("mounting", fails)


async def test_it_is_a_step_of_the_operation() -> None:
    operations, may_end = Operations(), threading.Event()

    async def work() -> None:
        with operations.begin("RunPodSandbox", "web"):
            await in_time("mounting", may_end.wait, 10)

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        await turn_over()
        [view] = operations.under_way()
        may_end.set()
    assert [each.name for each in view.steps] == ["mounting"]


async def test_what_hangs_is_given_up_and_its_late_answer_logged(clock: MovableClock) -> None:
    may_end = threading.Event()
    with pytest.raises(
        DeadlineError, match=r"^unmounting: the kernel call did not return within 30 s"
    ):
        await given_up(clock, in_time("unmounting", may_end.wait, 10))
    with capture_logs() as logs:
        may_end.set()
        await until(lambda: logs)
    assert (logs[0]["event"], logs[0]["what"]) == (
        "an abandoned kernel call returned",
        "unmounting",
    )


async def test_many_that_hang_leave_threads_for_everyone_else(clock: MovableClock) -> None:
    may_end = threading.Event()
    try:
        hung = [in_time("mounting", may_end.wait, 10) for _ in range(50)]
        ended = await given_up(clock, asyncio.gather(*hung, return_exceptions=True))
        assert all(isinstance(each, DeadlineError) for each in ended)
        assert await in_time("mounting", lambda: 7) == 7
        assert await asyncio.to_thread(lambda: 8) == 8
    finally:
        may_end.set()


async def test_a_cancellation_waits_for_the_effect() -> None:
    may_end, done = threading.Event(), []

    def effect() -> None:
        may_end.wait(10)
        done.append(True)

    task = asyncio.ensure_future(in_time("mounting", effect))
    await turn_over()
    task.cancel()
    await turn_over()
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


async def test_a_cancellation_does_not_wait_for_ever(clock: MovableClock) -> None:
    may_end = threading.Event()
    task = asyncio.ensure_future(in_time("mounting", may_end.wait, 10))
    await turn_over()
    task.cancel()
    await turn_over()
    assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await given_up(clock, task)
    may_end.set()


# --- on behalf of pods -------------------------------------------------------------------------------------------


@pytest.fixture
def hangs(clock: MovableClock) -> Iterator[Callable[..., Coroutine[None, None, None]]]:
    """Makes calls for an owner that are given up and go on."""
    may_end = threading.Event()

    async def hang(owner: str, path: str = "") -> None:
        hanging = threading.Event()

        def look() -> None:
            if path:
                working_on("mounts[0].host_path", path)
            hanging.set()
            may_end.wait(20)

        call = asyncio.ensure_future(in_time_for(owner, "looking", look))
        # It may have been refused, in its thread, before it could hang.
        await until(lambda: hanging.is_set() or call.done())
        await given_up(clock, call)

    yield hang
    may_end.set()
    block_until(lambda: not unanswered())


async def test_an_owner_of_several_that_hang_is_refused_and_others_are_not(
    hangs: Callable[..., Coroutine[None, None, None]],
) -> None:
    for n in range(MAX_UNANSWERED):
        with pytest.raises(
            DeadlineError, match=rf"^looking: mounts\[0\]\.host_path: '/dead/{n}': the"
        ):
            await hangs("pod a", f"/dead/{n}")
    with pytest.raises(
        UnavailableError,
        match=r"^reading: refused, since 2 kernel calls for pod a hang, .*'/dead/0'",
    ):
        await in_time_for("pod a", "reading", lambda: 1)
    assert await in_time_for("pod b", "reading", lambda: 1) == 1


async def test_a_path_on_which_a_call_hangs_is_refused_to_everyone_without_a_thread(
    hangs: Callable[..., Coroutine[None, None, None]],
) -> None:
    with pytest.raises(DeadlineError):
        await hangs("pod a", "/dead")
    threads = threading.active_count()
    for owner in ("pod a", "pod b") * 10:
        with pytest.raises(
            UnavailableError,
            match=r"^mounts\[0\]\.host_path: '/dead': refused, since a kernel call on it",
        ):
            await hangs(owner, "/dead")
    assert threading.active_count() <= threads + 1
    with pytest.raises(DeadlineError):
        await hangs("pod a", "/dead/other")


async def test_too_many_on_the_node_are_refused_on_that_mount_then_on_every_named_path(
    hangs: Callable[..., Coroutine[None, None, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_call, "MAX_UNANSWERED_OF_NODE", 3)
    monkeypatch.setattr(kernel_call, "mount_points", lambda: {"/", "/dead", "/dead/not", "/alive"})

    async def named(path: str) -> None:
        await in_time_for("pod z", "looking", working_on, "mounts[0].host_path", path)

    for n in range(3):
        await named("/dead/z")
        with pytest.raises(DeadlineError):
            await hangs(f"pod {n}", f"/dead/{n}")
    with pytest.raises(
        UnavailableError, match=r"'/dead/z': refused, since 3 kernel calls .* '/dead'"
    ):
        await named("/dead/z")
    for path in ("/alive/z", "/dead/not/z", "/deadly"):
        await named(path)
    monkeypatch.setattr(kernel_call, "MAX_UNANSWERED_OF_NODE", 1)
    with pytest.raises(UnavailableError, match="3 kernel calls on this node"):
        await named("/alive/z")
    assert await in_time_for("pod z", "mounting", lambda: 1) == 1  # no path of a request
    assert await in_time("unmounting", lambda: 1) == 1


async def test_a_path_lies_on_the_deepest_mount_that_it_names() -> None:
    points = mount_points()
    assert {"/", "/proc"} <= points
    assert mount_of(points, "/proc/self/../1") == "/proc"
    assert mount_of({"/", "/a b"}, "/a b/c") == "/a b"
    assert mount_of({"/", "/a"}, "/ab") == "/"


async def test_what_answers_after_all_is_no_reason_to_refuse(clock: MovableClock) -> None:
    may_end = threading.Event()

    looking = 0

    def look() -> None:
        nonlocal looking
        working_on("mounts[0].host_path", "/slow")
        looking += 1
        may_end.wait(20)

    late = [
        asyncio.ensure_future(in_time_for("pod a", "looking", look)),
        asyncio.ensure_future(in_time_for("pod a", "looking", look)),
    ]
    await until(lambda: looking == 2)
    ended = await given_up(clock, asyncio.gather(*late, return_exceptions=True))
    assert [type(each) for each in ended] == [DeadlineError, DeadlineError]
    with pytest.raises(UnavailableError):
        await in_time_for("pod a", "looking", look)
    may_end.set()
    await until(lambda: not unanswered("pod a"))
    await in_time_for("pod a", "looking", look)


async def test_what_takes_long_because_it_is_much_has_its_time(clock: MovableClock) -> None:
    may_end = threading.Event()
    copying = asyncio.ensure_future(at_length_for("pod a", "copying", may_end.wait, 20))
    await clock.sleep(2 * TIMEOUT_S, in_spite_of_threads=True)
    assert not copying.done()
    with pytest.raises(DeadlineError, match="copying: the kernel call did not"):
        await given_up(clock, copying)
    may_end.set()
