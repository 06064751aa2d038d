"""Processes that are not our children: told apart from a later one of the same number, signalled, watched.

Rules:
- A bare pid read from a file may by now belong to somebody else. What is stored beside it is the start time in
  clock ticks since boot (proc(5), stat field 22); number and start time together name one process of one boot.
- Signals go through a pidfd, which never reaches a later process of the same number.
- "Gone" is an answer, not an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
from typing import TYPE_CHECKING

from cri_shim.host.procstat import process_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# A number that now names a thread, not a process, is refused with EINVAL or (since Linux 6.15) ENOENT.
_GONE = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})


def start_time_ticks(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process."""
    entry = process_entry(pid)
    return None if entry is None else entry.start_ticks


def parent_pid(pid: int) -> int | None:
    """The parent of `pid`; None when there is no such process."""
    entry = process_entry(pid)
    return None if entry is None else entry.parent_pid


def open_pidfd(pid: int, start_time_ticks: int | None = None) -> int | None:
    """A pidfd (close-on-exec, the caller closes it) for `pid`; None when that process is gone.

    With `start_time_ticks` a later process of the same number counts as gone. A zombie is not gone: its pidfd is
    readable at once. Raises OSError when out of descriptors.
    """
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    # The look comes after the open: what the descriptor holds can't change any more, and a number that still has
    # the right start time now had it then.
    if start_time_ticks is not None:
        try:
            entry = process_entry(pid)
        except OSError:  # no descriptor left for the look
            os.close(pidfd)
            raise
        if entry is None or entry.start_ticks != start_time_ticks:
            os.close(pidfd)
            return None
    return pidfd


def kill_pidfd(pidfd: int, signal_number: int = signal.SIGKILL) -> bool:
    """Signal the process behind `pidfd`; False when it is gone already."""
    try:
        signal.pidfd_send_signal(pidfd, signal_number)
    except ProcessLookupError:
        return False
    return True


def kill_process(
    pid: int, start_time_ticks: int | None, signal_number: int = signal.SIGKILL
) -> bool:
    """Signal `pid` if it is still the process that started then; False when it is gone."""
    pidfd = open_pidfd(pid, start_time_ticks)
    if pidfd is None:
        return False
    try:
        return kill_pidfd(pidfd, signal_number)
    finally:
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    """Whether the process behind `pidfd` has ended (a zombie has)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def ends_of(processes: Iterable[tuple[int, int | None]], timeout_s: float) -> list[int]:
    """Wait until all of these processes (pid and start time) have ended, at most `timeout_s`; the pids that still run.

    Raises OSError when out of descriptors.
    """
    loop = asyncio.get_running_loop()
    running: dict[int, int] = {}
    all_ended = asyncio.Event()

    def forget(pidfd: int) -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        del running[pidfd]
        if not running:
            all_ended.set()

    try:
        for pid, started in processes:
            if (pidfd := open_pidfd(pid, started)) is not None:
                running[pidfd] = pid
                loop.add_reader(pidfd, forget, pidfd)
        if running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await all_ended.wait()
        return sorted(running.values())
    finally:
        for pidfd in list(running):
            forget(pidfd)


class PidWatch:
    """Tells, once per process, that it has ended. Used on the loop's thread only."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, pid: int, start_time_ticks: int | None, callback: Callable[[], None]) -> None:
        """Call `callback` on the running loop when the process has ended; soon, if it is gone already.

        Raises ValueError when that living process is watched already, OSError when out of descriptors.
        """
        loop = asyncio.get_running_loop()
        earlier = self._watched.get(pid)
        if earlier is not None:
            if not has_ended(earlier[0]):
                raise ValueError(f"process {pid} is watched already")
            self._fire(pid)  # it ended and its number came back before the loop got round to it
        pidfd = open_pidfd(pid, start_time_ticks)
        if pidfd is None:
            loop.call_soon(callback)
            return
        self._watched[pid] = (pidfd, callback)
        loop.add_reader(pidfd, self._fire, pid)

    def unwatch(self, pid: int) -> None:
        """Forget `pid` without a call; nothing happens when it isn't watched."""
        self._forget(pid)

    def close(self) -> None:
        """Forget every process."""
        for pid in list(self._watched):
            self._forget(pid)

    def _forget(self, pid: int) -> Callable[[], None] | None:
        watched = self._watched.pop(pid, None)
        if watched is None:
            return None
        pidfd, callback = watched
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        return callback

    def _fire(self, pid: int) -> None:
        callback = self._forget(pid)
        if callback is not None:
            callback()
