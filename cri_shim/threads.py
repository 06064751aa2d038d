"""Threads for blocking calls: as many as there are calls. A few hanging calls would use up asyncio's default threads.

Rules:
- They are daemon threads: the end of the process does not wait for one that hangs.
- An idle thread is reused, since starting one takes as long as many calls.
- Callers bound the number of calls.
- `asyncio.to_thread` is used only for short reads of our own files below root and state, or of files that the operator
  configured: never for paths that a request, an image or a container names.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from cri_shim.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
MAX_IDLE = 16


def in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a blocking call in a thread; returns a future of its result on the running loop.

    The call is never cancelled.
    """
    loop = asyncio.get_running_loop()
    working: Prompt[T] = Prompt(loop=loop)
    _Worker.give(_Job(loop, working, call))
    return working


def under_way() -> int:
    """How many calls have been given and have not come back, those that hang among them."""
    return len(_Job.under_way)


class _Job:
    """A call, and the future and loop of its result."""

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
        """Run the call; returns the function that delivers its result."""
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - carried to the caller whole
            return partial(self._tell, self._working.set_exception, error)
        return partial(self._tell, self._working.set_result, result)

    def _tell(self, settle: Callable[[Any], None], outcome: object) -> None:
        try:
            self._loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            pass  # the loop was closed meanwhile, so nobody waits
        # Only now: whoever sees that no call is under way finds what came of this one on its loop.
        self.under_way.discard(self)


class _Worker:
    """A thread that runs one job after the other."""

    _idle: ClassVar[list[_Worker]] = []
    """Shared by the loops of several threads. Append and pop of a list are atomic."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=self._work, name="blocking-call", daemon=True).start()

    @classmethod
    def give(cls, job: _Job) -> None:
        """Run a job in an idle thread, or else in a new one."""
        try:
            worker = cls._idle.pop()
        except IndexError:
            worker = cls()
        worker._jobs.put(job)

    def _work(self) -> None:
        while True:
            tell = self._jobs.get().do()
            # Become idle before the result is delivered, so that the caller's next job can reuse this thread.
            stays = len(self._idle) < MAX_IDLE
            if stays:
                self._idle.append(self)
            tell()
            del tell
            if not stays:
                return
