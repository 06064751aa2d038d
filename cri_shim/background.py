"""Owning work: tasks that nobody waits for, two things side by side, and effects that a cancellation must not split.

A thread can't be cancelled. Whoever gives an effect to one (a mount, a removal) and goes away would let an undo run
before the effect has happened; `uninterrupted` keeps the caller until the thread is done. For what may hang in the
kernel there is `kernel_call`. Neither uses asyncio's own threads, which are few: long effects would hold up all others.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import structlog

from cri_shim.errors import CriShimError
from cri_shim.operations import step
from cri_shim.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

log = structlog.get_logger()
T = TypeVar("T")
P = ParamSpec("P")


class Background:
    """Owns tasks; a failing one is logged and hurts no other."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._endless: set[asyncio.Task[Any]] = set()

    def start(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work` on its own; whatever it raises is logged under `name`. The task is for who may cancel it."""
        return self._own(name, work)

    def keep(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work`, which has no end of its own or a late one, until `close`, which cancels it at once."""
        task = self._own(name, work)
        self._endless.add(task)
        task.add_done_callback(self._endless.discard)
        return task

    async def owned(self, name: str, work: Coroutine[object, object, T]) -> T:
        """Run `work` in a task of its own and return what it does; cancelling the caller leaves the work alone."""
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
        """Let what runs end within `grace_s` seconds, then cancel it and wait."""
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
    """The waiting caller is told; should it have gone away, nobody is, and that is no reason for a warning."""
    if not task.cancelled():
        task.exception()


async def until_done(
    what: str, work: Callable[[], Coroutine[object, object, None]], *, first_pause_s: float = 0.5
) -> None:
    """Do `work`, again and again with growing pauses (30 s at most), until it succeeds; for what must not be given up.

    Each kind of failure is logged once.
    """
    pause_s, last = first_pause_s, ""
    while True:
        try:
            await work()
        except (CriShimError, OSError) as error:
            if str(error) != last:
                last = str(error)
                log.error("failed, will be tried again", what=what, error=last)
        else:
            return
        with step("waiting to try again what failed"):
            await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 30.0)


async def side_by_side(
    first: Coroutine[object, object, None], second: Coroutine[object, object, T]
) -> T:
    """Run both at once and return what `second` does.

    If one fails the other is cancelled and waited for, and that first error is raised alone.
    """
    failed: tuple[BaseException, ...] = ()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(first)
            result = group.create_task(second)
    except BaseExceptionGroup as errors:
        failed = errors.exceptions
        errors.__traceback__ = (
            None  # it holds the task group's frame, which holds it: see `forget_frames`
        )
    for extra in failed[1:]:
        log.warning("failed as well", error=str(extra))
    if failed:
        # Out here, where the group, which has it among its own, does not become what it came from.
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


async def uninterrupted(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking effect in a thread and return what it does; a cancellation is raised only after its end."""
    working = in_thread(partial(function, *args, **kwargs))
    cancelled = await end_of(working)
    if cancelled is not None:
        working.exception()  # looked at: the cancellation is what the caller hears of
        raise cancelled
    return working.result()


async def undivided(effect: Callable[[], None], then: Callable[[], None]) -> None:
    """As `uninterrupted`, with what follows the effect here, on the loop, unless the effect fails."""
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
    """Wait for the end whatever happens, or for `timeout_s`; the cancellation that came meanwhile."""
    try:
        await _done_or_late(working, timeout_s, _Unswayed(loop=asyncio.get_running_loop()))
    except asyncio.CancelledError as late:
        return late
    return None


async def settled(future: asyncio.Future[T], timeout_s: float | None = None) -> bool:
    """Wait until it is done, or for `timeout_s`; whether it is. Cancelling this wait leaves the future alone."""
    await _done_or_late(future, timeout_s, asyncio.get_running_loop().create_future())
    return future.done()


class _Unswayed(asyncio.Future[None]):
    """Who waits for it is told of a cancellation after its end: a task keeps one that its future does not take."""

    def cancel(self, msg: object = None) -> bool:
        return False


async def _done_or_late(
    future: asyncio.Future[T], timeout_s: float | None, waiter: asyncio.Future[None]
) -> None:
    # What `asyncio.wait` does for a set of futures, at a third of the cost: a pod's life waits a hundred times.
    def tell(_future: asyncio.Future[T] | None = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    if future.done():
        return
    timer = None if timeout_s is None else waiter.get_loop().call_later(timeout_s, tell)
    future.add_done_callback(tell)
    try:
        await waiter
    finally:
        future.remove_done_callback(tell)
        if timer is not None:
            timer.cancel()
