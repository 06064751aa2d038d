"""Background tasks, two coroutines in parallel, and blocking effects that a cancellation must not interrupt.

A thread cannot be cancelled. If a cancelled caller did not wait for its thread (a mount, a removal), its undo could run
before the effect. So `uninterrupted` waits for the thread, and raises the cancellation afterwards. Calls that may hang
in the kernel use `kernel_call`. Neither uses asyncio's default threads: they are few, and a long effect would block
others.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import structlog

from cri_shim.errors import CriShimError
from cri_shim.operations import step
from cri_shim.prompt import Prompt
from cri_shim.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

log = structlog.get_logger()
T = TypeVar("T")
P = ParamSpec("P")


class Background:
    """Owns tasks. The failure of a task is logged and does not affect others."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._endless: set[asyncio.Task[Any]] = set()

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """Those that have not ended."""
        return tuple(self._tasks)

    def start(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work` in a task. Its error is logged under `name`. The task is returned so that it can be cancelled."""
        return self._own(name, work)

    def keep(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work`, which may never end, in a task. `close` cancels it at once, without the grace period."""
        task = self._own(name, work)
        self._endless.add(task)
        task.add_done_callback(self._endless.discard)
        return task

    async def owned(self, name: str, work: Coroutine[object, object, T]) -> T:
        """Run `work` in a task and return its result. Cancelling the caller does not cancel the work."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look_at_error)
        return await asyncio.shield(task)

    def _own(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", work=task.get_name(), exc_info=error)

    async def close(self, grace_s: float) -> None:
        """Wait for the tasks at most `grace_s` seconds, then cancel them and wait for their ends."""
        for task in self._endless:
            task.cancel()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)


def _look_at_error(task: asyncio.Task[Any]) -> None:
    """Retrieve the task's error. The caller gets it too; if the caller is gone, asyncio would warn about it."""
    if not task.cancelled():
        task.exception()


async def until_done(
    what: str, work: Callable[[], Coroutine[object, object, None]], *, first_pause_s: float = 0.5
) -> None:
    """Repeat `work` until it succeeds, with pauses that double up to 30 s.

    CriShimError and OSError count as failures, and are logged if they differ from the one before.
    """
    pause_s, last = first_pause_s, ""
    while True:
        try:
            await work()
        except (CriShimError, OSError) as error:
            if str(error) != last:
                last = str(error)
                log.error("failed, will be retried", what=what, error=last)
        else:
            return
        with step("waiting to try again what failed"):
            await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 30.0)


async def side_by_side(
    first: Coroutine[object, object, None], second: Coroutine[object, object, T]
) -> T:
    """Run both coroutines in parallel and return the result of `second`.

    If one fails, the other is cancelled and awaited, and the first error is raised, not an exception group.
    """
    failed: tuple[BaseException, ...] = ()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(first)
            result = group.create_task(second)
    except BaseExceptionGroup as errors:
        failed = errors.exceptions
        # The traceback refers to the task group's frame, and that frame to the group: break the cycle
        # (`forget_frames`).
        errors.__traceback__ = None
    for extra in failed[1:]:
        log.warning("failed as well", error=str(extra))
    if failed:
        # Raised outside of the `except` block, which would set the group as its __context__, a cycle.
        raise failed[0]
    return result.result()


async def for_each(
    items: Iterable[T], work: Callable[[T], Awaitable[object]], *, at_once: int
) -> None:
    """Do `work` for each item, at most `at_once` at a time, begun in order. The first failure ends the rest."""
    left = iter(tuple(items))

    async def take() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(take())


async def one_by_one(
    first: Coroutine[object, object, object], second: Coroutine[object, object, T]
) -> T:
    """Run the second when the first has succeeded, and return what it does; else it is never begun."""
    try:
        await first
    except BaseException:
        second.close()
        raise
    return await second


async def uninterrupted(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking effect in a thread and return its result. A cancellation is raised only after its end."""
    working = in_thread(partial(function, *args, **kwargs))
    cancelled = await end_of(working)
    if cancelled is not None:
        working.exception()  # retrieved, so that asyncio does not warn; the cancellation is raised instead
        raise cancelled
    return working.result()


async def undivided(effect: Callable[[], None], then: Callable[[], None]) -> None:
    """As `uninterrupted`, and call `then` on the loop if the effect succeeded, also if the caller was cancelled."""
    working = in_thread(effect)
    cancelled = await end_of(working)
    if working.exception() is None:
        then()
    if cancelled is not None:
        raise cancelled
    working.result()


async def end_of(
    working: asyncio.Future[T], timeout_s: float | None = None
) -> asyncio.CancelledError | None:
    """Wait until `working` is done, at most `timeout_s`, despite cancellation.

    Returns the cancellation, if one came.
    """
    try:
        await _done_or_late(working, timeout_s, _Unswayed(loop=asyncio.get_running_loop()))
    except asyncio.CancelledError as late:
        return late
    return None


async def settled(future: asyncio.Future[T], timeout_s: float | None = None) -> bool:
    """Wait until the future is done, at most `timeout_s`.

    Returns whether it is. Cancelling does not cancel the future.
    """
    await _done_or_late(future, timeout_s, asyncio.get_running_loop().create_future())
    return future.done()


class _Unswayed(asyncio.Future[None]):
    """A future that cannot be cancelled. A task that awaits it gets a cancellation when the future is done.

    `Task.cancel` first cancels the awaited future. If that refuses, the task raises CancelledError at its next step.
    """

    def cancel(self, msg: object = None) -> bool:
        return False


async def _done_or_late(
    future: asyncio.Future[T], timeout_s: float | None, waiter: asyncio.Future[None]
) -> None:
    # `asyncio.wait` would do the same at three times the cost, and the calls of one pod wait a hundred times.
    def tell(_future: asyncio.Future[T] | None = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    if future.done():
        return
    timer = None if timeout_s is None else waiter.get_loop().call_later(timeout_s, tell)
    if isinstance(future, Prompt):
        future.tell_at_once(tell)
    else:
        future.add_done_callback(tell)
    try:
        await waiter
    finally:
        if isinstance(future, Prompt):
            future.tell_no_more(tell)
        else:
            future.remove_done_callback(tell)
        if timer is not None:
            timer.cancel()
