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
"""A turn is told of when it took longer."""
_AT_ONCE: Final = 64
"""Descriptors that one turn is for; the kernel tells of others first in the next."""
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE


class _Turns(selectors.BaseSelector):
    """epoll(7), asked by the loop between two turns, so it sees where each begins and ends.

    As the standard library's selector, with fewer function calls in each turn: a pod's life has some 250 turns, and a
    client's call has ten.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._tell: Callable[[float, float], None] | None = None
        self._began_s = self._computed_s = 0.0

    def watch(self, tell: Callable[[float, float], None]) -> None:
        """From now on; the turn under way counts from here."""
        self._tell = tell
        self._began_s, self._computed_s = time.monotonic(), time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready within `timeout` seconds; a turn ends where this is called, the next begins where it returns.

        None is for ever, 0 and less: only look.
        """
        asked_s = time.monotonic()
        if self._tell is not None and (stalled_s := asked_s - self._began_s) > STALL_S:
            self._tell(stalled_s, time.thread_time() - self._computed_s)
        # A part of a millisecond is waited for as a whole one, so that no timer is looked at too early.
        found = self._epoll.poll(-1 if timeout is None else max(timeout, 0), _AT_ONCE)
        self._began_s, self._computed_s = time.monotonic(), time.thread_time()
        if not found:
            if timeout is not None:
                self._began_s = min(self._began_s, asked_s + max(timeout, 0.0))
            return []
        ready = []
        for fd, events in found:
            if (key := self._keys.get(fd)) is not None:
                # An error, or the other side's end, is news for readers and writers.
                reading = _READ if events & ~select.EPOLLOUT else 0
                writing = _WRITE if events & ~select.EPOLLIN else 0
                ready.append((key, (reading | writing) & key.events))
        return ready

    def register(
        self, fileobj: FileDescriptorLike, events: int, data: object = None
    ) -> selectors.SelectorKey:
        """Raises KeyError when it is registered already, OSError."""
        fd = _number(fileobj)
        if fd in self._keys:
            raise KeyError(f"descriptor {fd} is registered already")
        self._epoll.register(fd, _mask(events))
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def modify(
        self, fileobj: FileDescriptorLike, events: int, data: object = None
    ) -> selectors.SelectorKey:
        """Raises KeyError when it is not registered, OSError."""
        fd = _number(fileobj)
        if events != self._keys[fd].events:
            self._epoll.modify(fd, _mask(events))
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Raises KeyError when it is not registered. One that was closed before, the kernel has forgotten itself."""
        fd = _number(fileobj)
        key = self._keys.pop(fd)
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        return key

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Raises KeyError when it is not registered."""
        return self._keys[_number(fileobj)]

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        """Everything that is registered, by its number."""
        return cast("Mapping[FileDescriptorLike, selectors.SelectorKey]", self._keys)

    def close(self) -> None:
        """Forget everything."""
        self._epoll.close()
        self._keys.clear()


def _number(fileobj: FileDescriptorLike) -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _mask(events: int) -> int:
    return (select.EPOLLIN if events & _READ else 0) | (select.EPOLLOUT if events & _WRITE else 0)


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
