"""Runs work in tasks that belong to the server instead of the call, at most one per key; callers share the result.

A client's deadline cancels its handler, not the work, which runs in a task owned here, keyed by the object's name. A
retry with the same request joins the task. A different request with the same key cancels it, waits for its undo, and
starts its own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog

from cri_shim.background import settled
from cri_shim.errors import CriShimError, DeadlineError, UnavailableError, forget_frames
from cri_shim.operations import Operations, step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = structlog.get_logger()
T = TypeVar("T")
UNDONE_WITHIN_S = 30.0
"""Longest wait for the undo of cancelled work.

It exceeds the time of all undo steps, even if one hangs and is killed.
"""


class SupersededError(UnavailableError):
    """A different request with the same key replaced this one."""


@dataclass(slots=True)
class _Flight(Generic[T]):
    digest: bytes
    task: asyncio.Task[T]
    waiters: int = 0
    kept: bool = False
    """Whether a caller asked for it that may retry for its result."""
    abandoned: bool = False
    """Whether it was cancelled since its last caller went away."""
    ended: CriShimError | None = None
    """The error for its callers, if `end` cancelled it."""


class SingleFlight(Generic[T]):
    """The tasks of one kind of operation, by key."""

    def __init__(self, operation: str = "work", operations: Operations | None = None) -> None:
        """Each task is registered in `operations` under the name `operation`, with its key as the subject."""
        self._operation = operation
        self._operations = operations if operations is not None else Operations()
        self._flights: dict[str, _Flight[T]] = {}
        self._closing = False

    def __len__(self) -> int:
        return len(self._flights)

    def keys(self) -> list[str]:
        """The keys of the tasks under way."""
        return list(self._flights)

    def is_under_way(self, key: str) -> bool:
        """Whether a task for `key` is under way."""
        return key in self._flights

    async def run(
        self,
        key: str,
        digest: bytes,
        start: Callable[[], Coroutine[object, object, T]],
        *,
        abandon: bool = False,
    ) -> T:
        """Run `start` in a task for `key`, or join the task of an equal request (`digest`). Returns its result.

        Raises what the task raises. Cancelling the caller does not cancel the task, unless all its callers passed
        `abandon` and all are gone.
        """
        while (flight := self._flights.get(key)) is not None and (
            flight.digest != digest or flight.abandoned
        ):
            if not flight.abandoned:
                log.info("a different request replaces the one in flight", key=key)
                flight.task.cancel()
            with step(f"waiting for the end of another {self._operation}"):
                # Not `settled`, which returns at once for a task that has ended: its done callback, which removes the
                # flight, may have yet to run in this turn.
                await asyncio.wait([flight.task])
        if flight is None:
            flight = _Flight(
                digest, asyncio.create_task(self._fly(key, start), name=f"flight {key}")
            )
            self._flights[key] = flight
            flight.task.add_done_callback(lambda task: self._landed(key, task))
        flight.waiters += 1
        flight.kept = flight.kept or not abandon
        try:
            with step(f"waiting for {self._operation}"):
                return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.task.cancelled() and not _being_cancelled():
                # The task was cancelled, not this caller.
                if flight.ended is not None:
                    raise flight.ended from None
                if self._closing:
                    raise UnavailableError(
                        f"{key}: cancelled, since the server is stopping"
                    ) from None
                raise SupersededError(f"a different request for {key} replaced this one") from None
            raise
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.kept and not flight.task.done():
                flight.abandoned = True
                flight.task.cancel()

    async def _fly(self, key: str, start: Callable[[], Coroutine[object, object, T]]) -> T:
        with self._operations.begin(self._operation, key):
            return await start()

    def _landed(self, key: str, task: asyncio.Task[T]) -> None:
        flight = self._flights.pop(key)
        if not task.cancelled() and (error := task.exception()) and flight.waiters == 0:
            log.warning("an operation failed after its caller had gone", key=key, error=str(error))
            forget_frames(error)

    async def end(
        self, key: str, error: CriShimError, *, timeout_s: float = UNDONE_WITHIN_S
    ) -> None:
        """Cancel the task for `key`, if there is one, and wait for its undo. Its callers get `error`.

        Raises DeadlineError if the undo takes longer than `timeout_s`; it continues.
        """
        flight = self._flights.get(key)
        if flight is None:
            return
        if flight.ended is None:
            flight.ended = error
            flight.task.cancel()
        with step(f"waiting for the undoing of {self._operation}"):
            ended = await settled(flight.task, timeout_s)
        if not ended:
            raise DeadlineError(
                f"{key}: the undo of a cancelled {self._operation} has not ended after {timeout_s:g} s: retry"
            )

    async def close(self, grace_s: float) -> None:
        """Wait for the tasks at most `grace_s` seconds, then cancel them and wait for their undo.

        Callers get an error.
        """
        self._closing = True
        await self.end_all(grace_s)

    async def end_all(self, grace_s: float) -> None:
        """As `close`, but new work can be started afterwards."""
        tasks = [flight.task for flight in self._flights.values()]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
