"""A thread with an event loop of its own, for work that must not hold up the daemon's.

Rules: each object lives on one loop; what one loop asks of the other goes through `on_loop`, which waits without
holding either up. The thread ends with `stop`, after all it was given to do has been cancelled.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def on_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, T]) -> T:
    """Run `work` on another thread's loop and return what it does; cancelling the caller cancels it."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


class LoopThread:
    """The thread and its loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Return when the loop runs."""
        running = threading.Event()

        async def main(stopping: asyncio.Event) -> None:
            self._loop = asyncio.get_running_loop()
            self._stopping = stopping
            running.set()
            await stopping.wait()

        # Not a daemon's thread: what ends by `stop` needs not be torn away.
        self._thread = threading.Thread(
            target=lambda: asyncio.run(main(asyncio.Event())), name=self._name
        )
        self._thread.start()
        running.wait()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, once started."""
        assert self._loop is not None  # noqa: S101 - see above
        return self._loop

    async def run(self, work: Coroutine[object, object, T]) -> T:
        """Run `work` there and return what it does."""
        return await on_loop(self.loop, work)

    async def stop(self) -> None:
        """Cancel what still runs there and wait for the thread's end. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self.loop.call_soon_threadsafe(self._stopping.set)
            await asyncio.to_thread(thread.join)
