"""Calls that take the kernel milliseconds, or for ever: a mount, an unmount, a namespace, a look at every process.

A thread that hangs in the kernel can be neither cancelled nor killed. Rules:
- Such a call has a deadline. After it nobody waits any more, not even the end of this process: the threads are daemon
  threads, and not those of asyncio's pool, where a few that hang would leave none for everyone else.
- What is given up works by names. Once those are taken away, what it still does fails by itself; what can't be taken
  away because of it stays its owner's, who tries again.
- Threads are kept for the next call: starting one takes as long as many a mount.
"""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import structlog

from cri_shim.background import end_of
from cri_shim.errors import DeadlineError
from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger()
T = TypeVar("T")
P = ParamSpec("P")

TIMEOUT_S = 30.0
MAX_IDLE_THREADS = 16


async def in_time(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call in a thread, as a step `what` of the operation under way, and return what it does.

    A cancellation is raised only after its end, or after the deadline. Raises what the function raises, DeadlineError.
    """
    loop = asyncio.get_running_loop()
    working: asyncio.Future[T] = loop.create_future()
    started_s = time.monotonic()
    with step(what):
        _Worker.give(_Job(loop, working, partial(function, *args, **kwargs)))
        cancelled = await end_of(working, TIMEOUT_S)
    if not working.done():
        working.add_done_callback(partial(_log_late, what, started_s))
        if cancelled is None:
            raise DeadlineError(
                f"{what}: the kernel has not answered within {TIMEOUT_S:g} s: see the kernel's log, and "
                "/proc/PID/task/*/stack of the daemon"
            )
    if cancelled is not None:
        if working.done():
            working.exception()  # looked at: the cancellation is what the caller hears of
        raise cancelled
    return working.result()


class _Job:
    """A call, and the loop that waits for it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        working: asyncio.Future[Any],
        call: Callable[[], Any],
    ) -> None:
        self._loop = loop
        self._working = working
        self._call = call

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


class _Worker:
    """One thread; idle between two jobs."""

    _idle: ClassVar[list[_Worker]] = []
    """Appending and popping are atomic: loops of several threads may give jobs."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=self._work, name="kernel-call", daemon=True).start()

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
            stays = len(self._idle) < MAX_IDLE_THREADS
            if stays:
                self._idle.append(self)
            tell()
            del tell
            if not stays:
                return


def _log_late(what: str, started_s: float, late: asyncio.Future[Any]) -> None:
    error = late.exception()
    log.warning(
        "the kernel has answered late",
        what=what,
        seconds=round(time.monotonic() - started_s, 1),
        error=str(error) if error else "",
    )
