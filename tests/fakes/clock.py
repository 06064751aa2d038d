"""A monotonic clock that a test moves, and ways to wait for an event instead of a time.

`time.monotonic` is the one place that the product and every asyncio loop take monotonic time from: deadlines, timers,
pauses and ages move together, in all threads, and no product code knows of it.

Rules:
- Without being told, the clock goes as the real one does.
- `move` is for one step: what is due then runs in the loop's next turn.
- `sleep` goes from timer to timer, as the real clock would, and takes no time: whenever the loop has nothing to do, the
  clock jumps to its next timer. It jumps over no work: while a call is in a thread, the clock goes at its usual pace,
  unless the test says that such a call hangs. What another process does is unknown here: wait for that with `until`.
- A jump needs `ClockLoop`, which `tests/unit/conftest.py` gives to all unit tests.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

from cri_shim import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    import pytest

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_LOOK_S = 0.001
"""How often, of the real clock, a loop that may jump looks whether the work in threads has ended."""


class MovableClock:
    """`time.monotonic`, and how far it is ahead of the real one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._real = time.monotonic
        self._ahead_s = 0.0
        patch.setattr(time, "monotonic", self)

    def __call__(self) -> float:
        return self._real() + self._ahead_s

    def move(self, seconds: float) -> None:
        """Let time pass at once. A loop that runs in another thread has to be woken to notice."""
        assert seconds >= 0, "no monotonic clock goes back"
        self._ahead_s += seconds

    async def sleep(self, seconds: float, *, in_spite_of_threads: bool = False) -> None:
        """Let time pass from timer to timer of this loop; with calls `in_spite_of_threads`, if one is to hang."""
        with self._jumping(in_spite_of_threads):
            await asyncio.sleep(seconds)

    async def until(
        self,
        condition: Callable[[], object],
        *,
        within_s: float,
        in_spite_of_threads: bool = False,
    ) -> None:
        """As `sleep`, but only until the condition holds, which it must within `within_s`.

        It is looked at again after a thousandth of that, or 10 ms, of the clock.
        """
        end_s = self() + within_s
        with self._jumping(in_spite_of_threads):
            while not condition():
                assert self() < end_s, f"it did not come about within {within_s:g} s of the clock"
                await asyncio.sleep(max(within_s / 1000, 0.01))

    @contextmanager
    def _jumping(self, in_spite_of_threads: bool) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ClockLoop), "this loop can't jump"
        assert loop.jump is None, "two tasks sleep by one clock"

        def jump(seconds: float) -> bool:
            if not in_spite_of_threads and (threads.under_way() or loop.in_executor):
                return False
            self.move(seconds)
            return True

        loop.jump = jump
        try:
            yield
        finally:
            loop.jump = None


class ClockLoop(asyncio.SelectorEventLoop):
    """A loop that asks, instead of waiting for its next timer, whether the clock can jump there."""

    def __init__(self) -> None:
        self.jump: Callable[[float], bool] | None = None
        self.in_executor = 0
        """Calls under way in asyncio's own threads."""
        super().__init__(_JumpingSelector(self))

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As any loop does; counted."""
        working = super().run_in_executor(executor, func, *args)
        self.in_executor += 1
        working.add_done_callback(self._done_in_executor)
        return working

    def _done_in_executor(self, _working: object) -> None:
        self.in_executor -= 1


class _JumpingSelector(selectors.EpollSelector):
    def __init__(self, loop: ClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        jump = self._loop.jump
        if jump is None or timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if ready or jump(timeout):
            return ready
        return super().select(min(timeout, _LOOK_S))


class ClockPolicy(asyncio.DefaultEventLoopPolicy):
    """Every new loop is one that can jump."""

    def new_event_loop(self) -> ClockLoop:
        """See the class."""
        return ClockLoop()


async def until(condition: Callable[[], object], *, within_s: float = 20.0) -> None:
    """Let the loop turn until the condition holds, by the real time; for what threads, files and processes do."""
    end_s = time.perf_counter() + within_s
    while not condition():
        assert time.perf_counter() < end_s, f"it did not come about within {within_s:g} s"
        await asyncio.sleep(0.001)


def block_until(condition: Callable[[], object], *, within_s: float = 20.0) -> None:
    """As `until`, where there is no loop, or where the loop is to stand still meanwhile."""
    end_s = time.perf_counter() + within_s
    while not condition():
        assert time.perf_counter() < end_s, f"it did not come about within {within_s:g} s"
        time.sleep(0.001)


async def turn_over(times: int = 20) -> None:
    """Let the loop turn a few times, for everything that is ready to run."""
    for _ in range(times):
        await asyncio.sleep(0)
