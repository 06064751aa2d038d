"""Work that belongs to the server, not to the call that asked for it.

A client's deadline cancels its handler, not the work: the work runs in a task owned here, keyed by the object's name.
A retry with the same request joins it; a different request under the same key undoes it first and starts anew.
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
"""What was ended. Longer than all that an undoing does takes, even where a step of it hangs and is killed."""


class SupersededError(UnavailableError):
    """A different request for the same key took this one's place."""


@dataclass(slots=True)
class _Flight(Generic[T]):
    digest: bytes
    task: asyncio.Task[T]
    waiters: int = 0
    kept: bool = False
    """Whether somebody wants it who may come back for its result."""
    abandoned: bool = False
    """Whether it is being undone, since its last caller went away."""
    ended: CriShimError | None = None
    """What its callers are told, where somebody else ended it."""


class SingleFlight(Generic[T]):
    """At most one task per key; callers share it."""

    def __init__(self, operation: str = "work", operations: Operations | None = None) -> None:
        """Each task is an operation of that name among `operations`, and its key what it is about."""
        self._operation = operation
        self._operations = operations if operations is not None else Operations()
        self._flights: dict[str, _Flight[T]] = {}
        self._closing = False

    def __len__(self) -> int:
        return len(self._flights)

    def keys(self) -> list[str]:
        """What is under way now."""
        return list(self._flights)

    def is_under_way(self, key: str) -> bool:
        """Whether something is done for `key` now."""
        return key in self._flights

    async def run(
        self,
        key: str,
        digest: bytes,
        start: Callable[[], Coroutine[object, object, T]],
        *,
        abandon: bool = False,
    ) -> T:
        """The result of the one task for `key`, started by the first caller with `digest`.

        Raises whatever the task raises. Cancelling the caller leaves the task alone, unless all who ever asked for it
        said `abandon` and are gone: then it is cancelled.
        """
        while (flight := self._flights.get(key)) is not None and (
            flight.digest != digest or flight.abandoned
        ):
            if not flight.abandoned:
                log.info("a different request replaces the one in flight", key=key)
                flight.task.cancel()
            with step(f"waiting for the end of another {self._operation}"):
                # Not `settled`: of a task that has just ended, the flight is still to be taken away in this turn.
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
                # Not cancelled by our own client.
                if flight.ended is not None:
                    raise flight.ended from None
                if self._closing:
                    raise UnavailableError(f"{key}: undone, since the server stops") from None
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
            log.warning("work whose caller is gone failed", key=key, error=str(error))
            forget_frames(error)

    async def end(
        self, key: str, error: CriShimError, *, timeout_s: float = UNDONE_WITHIN_S
    ) -> None:
        """Undo what is under way for `key`, if anything is, and tell its callers `error`.

        Raises DeadlineError if the undoing, which goes on, takes longer than `timeout_s`.
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
                f"{key}: its {self._operation}, ended, is still being undone after {timeout_s:g} s: call again"
            )

    async def close(self, grace_s: float) -> None:
        """Let what is under way end within `grace_s`, then cancel it and wait for its undoing."""
        self._closing = True
        await self.end_all(grace_s)

    async def end_all(self, grace_s: float) -> None:
        """As `close`, for now: work that is asked for afterwards is done."""
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
