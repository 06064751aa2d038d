"""Watches a directory with inotify(7) on the event loop.

Rules:
- Events are hints. If events were lost, or the directory was removed, the callback gets None: scan the directory again.
- Each callback is a loop callback of its own, so that one that raises does not lose the events after it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from typing import TYPE_CHECKING

from cri_shim.errors import ResourceExhaustedError
from cri_shim.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# <sys/inotify.h>
IN_MODIFY = 0x00000002
IN_CLOSE_WRITE = 0x00000008
IN_MOVED_FROM = 0x00000040
IN_MOVED_TO = 0x00000080
IN_CREATE = 0x00000100
IN_DELETE = 0x00000200
IN_DELETE_SELF = 0x00000400
IN_MOVE_SELF = 0x00000800
IN_UNMOUNT = 0x00002000
IN_Q_OVERFLOW = 0x00004000
IN_IGNORED = 0x00008000
IN_ONLYDIR = 0x01000000

FILES_CHANGED = IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO
"""Events after which the files of a directory may have changed. IN_CLOSE_WRITE instead of IN_MODIFY, so that a file is
read once, when its writer is done; IN_CREATE, since a link is created without being written."""

_EVENT = struct.Struct("iIII")
_READ_BYTES = 65536
_LOST = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED


def parse_events(data: bytes) -> Iterator[tuple[int, str]]:
    """Mask and name of each event in data read from inotify(7). The name is "" for the directory itself. Pure."""
    offset = 0
    while offset < len(data):
        _, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        yield mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
        offset += length


class DirectoryWatch:
    """Calls `callback(name)` for each event of `mask` on an entry of `path`, and `callback(None)` to request a rescan.

    Make it in the running loop. Earlier events are not seen: scan the directory once after making it. If the directory
    is removed, renamed or unmounted, the callback gets None once, `lost` becomes True, and no event follows.

    Raises OSError if `path` cannot be watched (missing, not a directory), ResourceExhaustedError at a limit of the
    kernel.
    """

    def __init__(self, path: Path, mask: int, callback: Callable[[str | None], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._fd = _open(path, mask | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR)
        self._closed = False
        self._asked = mask
        self.lost = False
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Stop watching, and drop events that were read but not delivered. Idempotent."""
        self._closed = True
        self._stop_reading()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        for mask, name in parse_events(data):
            if mask & _LOST:
                self.lost = True
                self._stop_reading()
                self._loop.call_soon(self._deliver, None)
                return
            if mask & IN_Q_OVERFLOW:
                self._loop.call_soon(self._deliver, None)
            elif mask & self._asked and name:
                self._loop.call_soon(self._deliver, name)

    def _deliver(self, name: str | None) -> None:
        if not self._closed:
            self._callback(name)

    def _stop_reading(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _open(path: Path, mask: int) -> int:
    fd = -1
    try:
        fd = syscalls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        syscalls.inotify_add_watch(fd, path, mask)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        if error.errno == errno.ENOSPC:
            raise ResourceExhaustedError(
                f"cannot watch {path}: the kernel's limit of inotify watches is reached: "
                "raise the sysctl fs.inotify.max_user_watches"
            ) from error
        if error.errno == errno.EMFILE:
            raise ResourceExhaustedError(
                f"cannot watch {path}: the limit of inotify instances or of open files is reached: "
                "raise the sysctl fs.inotify.max_user_instances or the daemon's limit of open files"
            ) from error
        raise
    return fd
