"""Calls that hang, in a thread: given up at the deadline, never waited for, and no reason for others to wait."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cri_shim import kernel_call
from cri_shim.errors import DeadlineError, UnavailableError
from cri_shim.kernel_call import (
    MAX_UNANSWERED,
    at_length_for,
    in_time,
    in_time_for,
    working_on,
)
from cri_shim.operations import Operations

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

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
    with pytest.raises(DeadlineError, match=r"^unmounting: the kernel call did not return within"):
        await in_time("unmounting", may_end.wait, 10)
    with capture_logs() as logs:
        may_end.set()
        while not logs:  # noqa: ASYNC110 - the log says it, and nothing else
            await asyncio.sleep(0.001)
    assert (logs[0]["event"], logs[0]["what"]) == (
        "an abandoned kernel call returned",
        "unmounting",
    )


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


# --- on behalf of pods -------------------------------------------------------------------------------------------


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Coroutine[None, None, None]]]:
    """Makes calls for an owner that are given up and go on."""
    monkeypatch.setattr(kernel_call, "TIMEOUT_S", 0.05)
    may_end = threading.Event()

    def look(path: str) -> None:
        if path:
            working_on("mounts[0].host_path", path)
        may_end.wait(20)

    async def hang(owner: str, path: str = "") -> None:
        await in_time_for(owner, "looking", look, path)

    yield hang
    may_end.set()
    while kernel_call._given_up:
        time.sleep(0.001)


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
    monkeypatch.setattr(kernel_call, "_mount_points", lambda: {"/", "/dead", "/dead/not", "/alive"})

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
    points = kernel_call._mount_points()
    assert {"/", "/proc"} <= points
    assert kernel_call._deepest(points, "/proc/self/../1") == "/proc"
    assert kernel_call._deepest({"/", "/a b"}, "/a b/c") == "/a b"
    assert kernel_call._deepest({"/", "/a"}, "/ab") == "/"


async def test_what_answers_after_all_is_no_reason_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_call, "TIMEOUT_S", 0.05)
    may_end = threading.Event()

    def look() -> None:
        working_on("mounts[0].host_path", "/slow")
        may_end.wait(20)

    late = [in_time_for("pod a", "looking", look), in_time_for("pod a", "looking", look)]
    ended = await asyncio.gather(*late, return_exceptions=True)
    assert [type(each) for each in ended] == [DeadlineError, DeadlineError]
    with pytest.raises(UnavailableError):
        await in_time_for("pod a", "looking", look)
    may_end.set()
    while any(call.owner == "pod a" for call in kernel_call._given_up):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await in_time_for("pod a", "looking", look)


async def test_what_takes_long_because_it_is_much_has_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_call, "TIMEOUT_S", 0.01)
    await at_length_for("pod a", "copying", time.sleep, 0.1)
    monkeypatch.setattr(kernel_call, "LONG_TIMEOUT_S", 0.01)
    with pytest.raises(DeadlineError, match="copying: the kernel call did not"):
        await at_length_for("pod a", "copying", time.sleep, 0.1)
