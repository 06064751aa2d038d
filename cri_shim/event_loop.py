"""The event loop of the daemon and of the streaming process, which tells of its turns that took long.

In a turn the loop runs all that was ready, one callback after the other; whoever becomes ready meanwhile waits for its
end. So the longest turn is the longest that one caller can hold up all others.

Rules:
- Every turn is measured, and no timer wakes an idle loop for it. It costs a microsecond a turn.
- A stall has two durations: by the wall clock, and what the loop's thread computed meanwhile. Where the second is much
  less than the first, the machine was busy, another thread had the interpreter's lock, or a call blocked.
- A turn that a timer began counts from the moment it was due. One that a file descriptor began counts from when the
  thread ran again: since when that was ready, nobody tells.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")
STALL_S: Final = 0.01
"""A turn is told of when it took longer."""


class _Turns(selectors.EpollSelector):
    """Asked by the loop between two turns, so it sees where each begins and ends."""

    def __init__(self) -> None:
        super().__init__()
        self._tell: Callable[[float, float], None] | None = None
        self._began_s = self._computed_s = 0.0

    def watch(self, tell: Callable[[float, float], None]) -> None:
        """From now on; the turn under way counts from here."""
        self._tell = tell
        self._began_s, self._computed_s = time.monotonic(), time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class; a turn ends where this is called, and the next begins where it returns."""
        asked_s = time.monotonic()
        if self._tell is not None and (stalled_s := asked_s - self._began_s) > STALL_S:
            self._tell(stalled_s, time.thread_time() - self._computed_s)
        ready = super().select(timeout)
        self._began_s, self._computed_s = time.monotonic(), time.thread_time()
        if not ready and timeout is not None:
            self._began_s = min(self._began_s, asked_s + max(timeout, 0.0))
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.turns = _Turns()
        super().__init__(self.turns)


def run(main: Coroutine[object, object, T]) -> T:
    """`asyncio.run` on a loop that can tell of its stalls."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


def tell_of_stalls(tell: Callable[[float, float], None]) -> None:
    """`tell(wall_s, cpu_s)` after each turn longer than `STALL_S`, from now on. In a loop of `run`; others can't."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, _Loop):
        loop.turns.watch(tell)
