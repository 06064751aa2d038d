"""Threads for calls that block: as many as there are calls, unlike asyncio's own few, which some that hang would fill.

Rules:
- They are daemon threads: not even the end of this process waits for one that hangs.
- A thread is kept for the next call: starting one takes as long as many a call.
- Who gives calls bounds their number.
- What stays with `asyncio.to_thread` is short, and reads our own files below the root and the state directory, or what
  the node's operator configured: never what a request, an image or a container names.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
MAX_IDLE = 16


def in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Make a blocking call in a thread of its own; what comes of it, for the running loop. Nothing cancels the call."""
    loop = asyncio.get_running_loop()
    working: asyncio.Future[T] = loop.create_future()
    _Worker.give(_Job(loop, working, call))
    return working


def under_way() -> int:
    """How many calls have been given and have not come back, those that hang among them."""
    return len(_Job.under_way)


class _Job:
    """A call, and the loop that waits for it."""

    under_way: ClassVar[set[_Job]] = set()
    """Adding and discarding are atomic: loops give jobs, and threads end them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        working: asyncio.Future[Any],
        call: Callable[[], Any],
    ) -> None:
        self._loop = loop
        self._working = working
        self._call = call
        self.under_way.add(self)

    def do(self) -> Callable[[], None]:
        """Make the call; how to tell what came of it."""
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - carried to the caller whole
            return partial(self._tell, self._working.set_exception, error)
        return partial(self._tell, self._working.set_result, result)

    def _tell(self, settle: Callable[[Any], None], outcome: object) -> None:
        try:
            self._loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            pass  # the loop has ended meanwhile, and so has everyone who waited
        # Only now: whoever sees that no call is under way finds what came of this one on its loop.
        self.under_way.discard(self)


class _Worker:
    """One thread; idle between two jobs."""

    _idle: ClassVar[list[_Worker]] = []
    """Appending and popping are atomic: loops of several threads may give jobs."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=self._work, name="blocking-call", daemon=True).start()

    @classmethod
    def give(cls, job: _Job) -> None:
        """Have a thread do it, a new one where none is idle."""
        try:
            worker = cls._idle.pop()
        except IndexError:
            worker = cls()
        worker._jobs.put(job)

    def _work(self) -> None:
        while True:
            tell = self._jobs.get().do()
            # Idle before the caller hears of it, who may have the next job.
            stays = len(self._idle) < MAX_IDLE
            if stays:
                self._idle.append(self)
            tell()
            del tell
            if not stays:
                return
