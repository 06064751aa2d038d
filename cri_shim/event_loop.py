"""The event loop of the daemon and of the streaming process, which reports turns that take long.

In a turn the loop runs all ready callbacks one after the other. A callback that becomes ready meanwhile waits for the
next turn. So the longest turn is the longest time for which one caller delays all others.

Rules:
- Every turn is measured, at a cost of a microsecond, and no timer wakes an idle loop for it.
- A stall has two durations: wall-clock time, and CPU time of the loop's thread. If the second is much less, the machine
  was busy, another thread held the GIL, or a call blocked.
- A turn that a timer started counts from the time when the timer was due. A turn that a descriptor started counts from
  when the thread ran again: the kernel does not tell since when the descriptor was ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
import time
from typing import TYPE_CHECKING, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from _typeshed import FileDescriptorLike

T = TypeVar("T")
STALL_S: Final = 0.01
"""Longer turns are reported."""
_AT_ONCE: Final = 64
"""Ready descriptors per turn. epoll_wait(2) returns the remaining ones first in the next turn."""
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE


class TurnSelector(selectors.BaseSelector):
    """An epoll(7) selector. The loop calls `select` between two turns, so it sees where each begins and ends.

    It works like `selectors.EpollSelector`, with fewer function calls per turn: the calls of one pod take some 250
    turns, a single call ten.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._tell: Callable[[float, float], None] | None = None
        self._began_s = self._computed_s = 0.0

    def watch(self, tell: Callable[[float, float], None]) -> None:
        """Report stalls to `tell(wall_s, cpu_s)`. The present turn counts from now."""
        self._tell = tell
        self._began_s, self._computed_s = time.monotonic(), time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait at most `timeout` seconds for ready descriptors; None waits for ever, 0 and less not at all.

        A turn ends when this is called, and the next begins when it returns.
        """
        asked_s = time.monotonic()
        if self._tell is not None and (stalled_s := asked_s - self._began_s) > STALL_S:
            self._tell(stalled_s, time.thread_time() - self._computed_s)
        # `poll` rounds up to whole milliseconds, so it does not return before a timer is due.
        found = self._epoll.poll(-1 if timeout is None else max(timeout, 0), _AT_ONCE)
        self._began_s, self._computed_s = time.monotonic(), time.thread_time()
        if not found:
            if timeout is not None:
                self._began_s = min(self._began_s, asked_s + max(timeout, 0.0))
            return []
        ready = []
        for fd, events in found:
            if (key := self._keys.get(fd)) is not None:
                # EPOLLERR and EPOLLHUP concern readers and writers alike.
                reading = _READ if events & ~select.EPOLLOUT else 0
                writing = _WRITE if events & ~select.EPOLLIN else 0
                ready.append((key, (reading | writing) & key.events))
        return ready

    def register(
        self, fileobj: FileDescriptorLike, events: int, data: object = None
    ) -> selectors.SelectorKey:
        """Register a descriptor. Raises KeyError if it is registered already, OSError."""
        fd = _number(fileobj)
        if fd in self._keys:
            raise KeyError(f"descriptor {fd} is registered already")
        self._epoll.register(fd, _mask(events))
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def modify(
        self, fileobj: FileDescriptorLike, events: int, data: object = None
    ) -> selectors.SelectorKey:
        """Change events and data of a descriptor. Raises KeyError if it is not registered, OSError."""
        fd = _number(fileobj)
        if events != self._keys[fd].events:
            self._epoll.modify(fd, _mask(events))
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Unregister a descriptor. Raises KeyError if it is not registered.

        If the descriptor was closed before, epoll(7) has removed it, and the error is ignored.
        """
        fd = _number(fileobj)
        key = self._keys.pop(fd)
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        return key

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """The key of a descriptor. Raises KeyError if it is not registered."""
        return self._keys[_number(fileobj)]

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        """All keys, by descriptor."""
        return cast("Mapping[FileDescriptorLike, selectors.SelectorKey]", self._keys)

    def close(self) -> None:
        """Close the epoll descriptor and forget all keys."""
        self._epoll.close()
        self._keys.clear()


def _number(fileobj: FileDescriptorLike) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _mask(events: int) -> int:
    return (select.EPOLLIN if events & _READ else 0) | (select.EPOLLOUT if events & _WRITE else 0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.turns = TurnSelector()
        super().__init__(self.turns)


def run(main: Coroutine[object, object, T]) -> T:
    """As `asyncio.run`, on a loop that can report its stalls."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


def tell_of_stalls(tell: Callable[[float, float], None]) -> None:
    """Call `tell(wall_s, cpu_s)` after each turn longer than `STALL_S`. No effect in a loop that `run` did not make."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, _Loop):
        loop.turns.watch(tell)
