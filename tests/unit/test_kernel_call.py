"""Calls that hang, in a thread: given up at the deadline, never waited for, and no reason for others to wait."""

from __future__ import annotations

import asyncio
import threading

import pytest
from structlog.testing import capture_logs

from cri_shim import kernel_call
from cri_shim.errors import DeadlineError
from cri_shim.kernel_call import in_time
from cri_shim.operations import Operations

pytestmark = pytest.mark.asyncio


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
        await asyncio.sleep(0.01)
        [view] = operations.under_way()
        may_end.set()
    assert [each.name for each in view.steps] == ["mounting"]


async def test_what_hangs_is_given_up_and_its_late_answer_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_call, "TIMEOUT_S", 0.05)
    may_end = threading.Event()
    with pytest.raises(DeadlineError, match=r"^unmounting: the kernel has not answered within"):
        await in_time("unmounting", may_end.wait, 10)
    with capture_logs() as logs:
        may_end.set()
        while not logs:  # noqa: ASYNC110 - the log says it, and nothing else
            await asyncio.sleep(0.001)
    assert (logs[0]["event"], logs[0]["what"]) == ("the kernel has answered late", "unmounting")


async def test_many_that_hang_leave_threads_for_everyone_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_call, "TIMEOUT_S", 0.05)
    may_end = threading.Event()
    try:
        hung = [in_time("mounting", may_end.wait, 10) for _ in range(50)]
        ended = await asyncio.gather(*hung, return_exceptions=True)
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
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


async def test_a_cancellation_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_call, "TIMEOUT_S", 0.05)
    may_end = threading.Event()
    task = asyncio.ensure_future(in_time("mounting", may_end.wait, 10))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()


async def test_threads_are_used_again() -> None:
    before = {await in_time("looking", threading.get_ident) for _ in range(5)}
    assert len(before) == 1
