"""Identifies, signals and watches processes that are not our children.

Rules:
- A pid from a file may belong to another process by now. So the start time is stored with it, in clock ticks since boot
  (proc(5), stat field 22). Pid and start time together identify one process of one boot.
- Signals go through a pidfd, which never refers to a later process with the same pid.
- A process that is gone is a result, not an error.
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

# pidfd_open(2) of a number that now is a thread fails with EINVAL, since Linux 6.15 with ENOENT.
_GONE = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})


def start_time_ticks(pid: int) -> int | None:
    """The start time of `pid` in clock ticks since boot, or None if there is no such process."""
    entry = process_entry(pid)
    return None if entry is None else entry.start_ticks


def parent_pid(pid: int) -> int | None:
    """The parent of `pid`, or None if there is no such process."""
    entry = process_entry(pid)
    return None if entry is None else entry.parent_pid


def open_pidfd(pid: int, start_time_ticks: int | None = None) -> int | None:
    """Open a pidfd, which is close-on-exec and which the caller closes. Returns None if the process is gone.

    With `start_time_ticks` a later process with the same pid counts as gone. A zombie does not: its pidfd is readable
    at once. Raises OSError if no descriptor is left.
    """
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    # The start time is read after the open. If the pid has the right start time now, it had it at the open as well, and
    # the pidfd keeps referring to that process.
    if start_time_ticks is not None:
        try:
            entry = process_entry(pid)
        except OSError:  # no descriptor left to read /proc
            os.close(pidfd)
            raise
        if entry is None or entry.start_ticks != start_time_ticks:
            os.close(pidfd)
            return None
    return pidfd


def kill_pidfd(pidfd: int, signal_number: int = signal.SIGKILL) -> bool:
    """Send a signal through `pidfd`. Returns False if the process is gone."""
    try:
        signal.pidfd_send_signal(pidfd, signal_number)
    except ProcessLookupError:
        return False
    return True


def kill_process(
    pid: int, start_time_ticks: int | None, signal_number: int = signal.SIGKILL
) -> bool:
    """Send a signal to `pid` if it is the process with that start time (None: any). Returns False if it is gone."""
    pidfd = open_pidfd(pid, start_time_ticks)
    if pidfd is None:
        return False
    try:
        return kill_pidfd(pidfd, signal_number)
    finally:
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    """Whether the process of `pidfd` has ended; a zombie has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def ends_of(processes: Iterable[tuple[int, int | None]], timeout_s: float) -> list[int]:
    """Wait at most `timeout_s` until these processes (pid, start time) have ended. Returns the pids that still run.

    Raises OSError if no descriptor is left: each running process takes one.
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
    """Calls back once per watched process when it has ended. Not thread-safe: used on the loop's thread only."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, pid: int, start_time_ticks: int | None, callback: Callable[[], None]) -> None:
        """Call `callback` on the running loop when the process has ended, or soon if it is gone already.

        Raises ValueError if the running process is watched already, OSError if no descriptor is left.
        """
        loop = asyncio.get_running_loop()
        earlier = self._watched.get(pid)
        if earlier is not None:
            if not has_ended(earlier[0]):
                raise ValueError(f"process {pid} is watched already")
            self._fire(pid)  # it ended, and its pid was reused before the loop read the pidfd
        pidfd = open_pidfd(pid, start_time_ticks)
        if pidfd is None:
            loop.call_soon(callback)
            return
        self._watched[pid] = (pidfd, callback)
        loop.add_reader(pidfd, self._fire, pid)

    def unwatch(self, pid: int) -> None:
        """Stop watching `pid` without a callback. No effect if it is not watched."""
        self._forget(pid)

    def close(self) -> None:
        """Stop watching every process."""
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
