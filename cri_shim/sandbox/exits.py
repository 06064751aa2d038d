"""Detects the ends of containers and pause processes, and reports each once.

A container's monitor writes the exit code to a file `<id>` in one directory, by rename. The file's mtime is the time of
the exit.

Rules:
- One inotify watch on that directory serves all containers. Events are only hints; the file counts.
- A pidfd on each process fires a moment earlier. The monitor drains the output before it writes the file. If it is slow
  (a stalled log disk), it is awaited while it runs, up to `HUNG_MONITOR_S`, and `needs_monitor` is called so that an
  attach session that blocks it can be ended.
- A pidfd on each monitor: if it ends without the file, the exit code is lost. This is reported as `code=None`, and the
  receiver kills the container.
- The end of a process without a monitor is reported at once, as `code=None`.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.host.inotify import IN_MOVED_TO, DirectoryWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cri_shim.host.port import Host
    from cri_shim.sandbox.store.model import Process

log = structlog.get_logger()
SLOW_MONITOR_S = 2.0
"""Delay of a running monitor's exit file after which a warning is logged."""
HUNG_MONITOR_S = 60.0
"""Delay after which the monitor counts as hanging."""
_MAX_CODE_BYTES = 64
"""Longer than any exit code."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container's process ended."""

    code: int | None
    """128+n for signal n. None without a monitor, or if the monitor died and the code is lost."""
    at_ns: int
    """Nanoseconds since the epoch; 0 if unknown."""


@dataclass(slots=True)
class _Watched:
    process: Process
    monitor: Process | None
    timer: asyncio.TimerHandle | None = None


class _SharedPids:
    """Calls back for each object whose process has ended; several may have the same one, such as their pod's shim."""

    def __init__(self, host: Host) -> None:
        self._pids = host.watch_pids()
        self._sharers: dict[Process, list[tuple[str, Callable[[str], None]]]] = {}

    def watch(self, process: Process, object_id: str, callback: Callable[[str], None]) -> None:
        """Call `callback(object_id)` at the process's end, soon if it has ended already."""
        sharers = self._sharers.setdefault(process, [])
        sharers.append((object_id, callback))
        if len(sharers) == 1:
            self._pids.watch(process.pid, process.start_ticks, lambda: self._fire(process))

    def unwatch(self, process: Process, object_id: str) -> None:
        """Call back no more for this object."""
        sharers = self._sharers.get(process)
        if sharers is None:
            return
        sharers[:] = [each for each in sharers if each[0] != object_id]
        if not sharers:
            del self._sharers[process]
            self._pids.unwatch(process.pid)

    def _fire(self, process: Process) -> None:
        for object_id, callback in self._sharers.pop(process, ()):
            callback(object_id)

    def close(self) -> None:
        """Watch nothing more."""
        self._sharers.clear()
        self._pids.close()


class ExitWatch:
    """Calls `on_exit(object_id, Exit)` once for each watched object whose process ended."""

    def __init__(
        self,
        exits_dir: Path,
        *,
        host: Host,
        needs_monitor: Callable[[str], None] = lambda _object_id: None,
    ) -> None:
        """`needs_monitor(object_id)` is called if a process ended and its monitor has not written the exit file."""
        self._exits_dir = exits_dir
        self._on_exit: Callable[[str, Exit], None] | None = None
        self._needs_monitor = needs_monitor
        self._watched: dict[str, _Watched] = {}
        self._pids = _SharedPids(host)
        self._directory: DirectoryWatch | None = None

    def open(self, on_exit: Callable[[str, Exit], None]) -> None:
        """Watch the exit directory, which must exist, and call `on_exit` from now on. Raises as `DirectoryWatch`."""
        self._on_exit = on_exit
        self._directory = DirectoryWatch(self._exits_dir, IN_MOVED_TO, self._on_file)

    def close(self) -> None:
        """Stop watching. Processes run on."""
        for object_id in list(self._watched):
            self.forget(object_id)
        if self._directory is not None:
            self._directory.close()
            self._directory = None
        self._pids.close()

    def watch(self, object_id: str, process: Process, monitor: Process | None) -> None:
        """Report the end of `process`, also if it has ended already."""
        self._watched[object_id] = _Watched(process, monitor)
        self._pids.watch(process, object_id, self._on_process_end)
        if monitor is not None:
            self._pids.watch(monitor, object_id, self._give_up)

    def forget(self, object_id: str) -> None:
        """Stop watching this object."""
        watched = self._watched.pop(object_id, None)
        if watched is None:
            return
        if watched.timer is not None:
            watched.timer.cancel()
        self._pids.unwatch(watched.process, object_id)
        if watched.monitor is not None:
            self._pids.unwatch(watched.monitor, object_id)

    def read(self, object_id: str) -> Exit | None:
        """The exit from the monitor's exit file, or None if there is none yet."""
        return read_exit_file(self._exits_dir / object_id)

    def _on_file(self, name: str | None) -> None:
        # None: events were lost, so any file may be new.
        for object_id in [name] if name is not None else list(self._watched):
            self._look(object_id)

    def _look(self, object_id: str) -> bool:
        if object_id not in self._watched:
            return False
        exit_ = self.read(object_id)
        if exit_ is None:
            return False
        self._report(object_id, exit_)
        return True

    def _on_process_end(self, object_id: str) -> None:
        watched = self._watched.get(object_id)
        if watched is not None and watched.monitor is None:
            self._report(object_id, Exit(None, 0))
            return
        if watched is None or self._look(object_id):
            return
        self._needs_monitor(object_id)
        loop = asyncio.get_running_loop()
        watched.timer = loop.call_later(SLOW_MONITOR_S, self._warn, object_id, watched)

    def _warn(self, object_id: str, watched: _Watched) -> None:
        if self._look(object_id):
            return
        log.warning(
            "the process has ended, but its monitor has not written the exit file", id=object_id
        )
        loop = asyncio.get_running_loop()
        watched.timer = loop.call_later(HUNG_MONITOR_S - SLOW_MONITOR_S, self._give_up, object_id)

    def _give_up(self, object_id: str) -> None:
        if object_id in self._watched and not self._look(object_id):
            log.warning("no exit file: the monitor died or hangs", id=object_id)
            self._report(object_id, Exit(None, 0))

    def _report(self, object_id: str, exit_: Exit) -> None:
        self.forget(object_id)
        if self._on_exit is not None:
            self._on_exit(object_id, exit_)


def read_exit_file(path: Path) -> Exit | None:
    """Read a monitor's exit file, which has a decimal exit code. None if it is missing or malformed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return Exit(int(os.read(fd, _MAX_CODE_BYTES)), os.fstat(fd).st_mtime_ns)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("unreadable exit file", path=str(path), error=str(error))
        return None
