"""Named points that the fakes pass, at which a test can make a call fail or wait."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

_THREAD_PATIENCE_S = 10.0


@dataclass(eq=False)
class Hold:
    """Calls that pass the point wait there until `release`: the next one, or all."""

    everyone: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set on the loop when a call waits there."""
    _thread_may_go: threading.Event = field(default_factory=threading.Event)
    _task_may_go: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        self._task_may_go.set()
        self._thread_may_go.set()


class Points:
    """Records the passed points, and the effects that tests have set for points."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self._failures: dict[str, BaseException] = {}
        self._holds: dict[str, Hold] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def fail(self, name: str, error: BaseException) -> None:
        """Raise `error` at each passing of the point, until `heal`."""
        self._failures[name] = error

    def heal(self) -> None:
        """Remove all failures."""
        self._failures.clear()

    def hold(self, name: str, *, everyone: bool = False) -> Hold:
        """Make the next call that passes wait, or all."""
        self._loop = asyncio.get_running_loop()
        hold = self._holds[name] = Hold(everyone)
        return hold

    async def pass_by(self, name: str) -> None:
        """Pass a point in a coroutine. Always yields to other tasks once."""
        self.passed.append(name)
        hold = self._take_hold(name)
        if hold is not None:
            hold.reached.set()
            await hold._task_may_go.wait()
        else:
            await asyncio.sleep(0)
        self._fail_at(name)

    def pass_in_thread(self, name: str) -> None:
        """Pass a point in a blocking call."""
        self.passed.append(name)
        hold = self._take_hold(name)
        if hold is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(hold.reached.set)
            hold._thread_may_go.wait(_THREAD_PATIENCE_S)
        self._fail_at(name)

    def _take_hold(self, name: str) -> Hold | None:
        hold = self._holds.get(name)
        if hold is not None and not hold.everyone:
            del self._holds[name]
        return hold

    def _fail_at(self, name: str) -> None:
        if name in self._failures:
            raise self._failures[name]
