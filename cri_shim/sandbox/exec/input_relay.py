"""The standard input of a shim's exec, passed on from a client's pipe to the shim's within the kernel.

A shim keeps an end of its own for writing, so a pipe that both used would never end. So there are two: at the end of
the first one the shim is told (`CloseIO`). Rules:
- Bytes are spliced: none of them comes into this process.
- The shim opens its pipe by our descriptor, at a time of its own: ours stays open until the process ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from cri_shim.oci.shim.exec import ShimExec

SPLICED_AT_ONCE = 1 << 20
_SPLICE_F_NONBLOCK = 2


class InputRelay:
    """One exec's. It closes all that it has at the process's end, or, never started, at the end of the context."""

    def __init__(self, source: int) -> None:
        """`source` is the client's pipe, for reading; the shim is to open `read_fd`. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._source = os.dup(source)
        try:
            self.read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(self._source)
            raise
        for fd in (self._source, self._write_fd):
            os.set_blocking(fd, False)
        self._child: ShimExec | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def start(self, child: ShimExec) -> None:
        """Pass on what comes, until the client ends it or the process does."""
        self._child = child
        self._loop.add_reader(self._source, self._pass_on)
        child.on_end(self._close)

    def _pass_on(self) -> None:
        try:
            passed = os.splice(
                self._source, self._write_fd, SPLICED_AT_ONCE, flags=_SPLICE_F_NONBLOCK
            )
        except BlockingIOError:
            if _unread_bytes(self._source):  # the shim's pipe is full
                self._loop.remove_reader(self._source)
                self._loop.add_writer(self._write_fd, self._on_room)
            return
        if not passed:
            # What is in the shim's pipe is read before its end.
            self._loop.remove_reader(self._source)
            os.close(self._write_fd)
            self._write_fd = -1
            if self._child is not None:
                self._child.end_input()

    def _on_room(self) -> None:
        self._loop.remove_writer(self._write_fd)
        self._loop.add_reader(self._source, self._pass_on)

    def _close(self) -> None:
        if self._source >= 0:
            self._loop.remove_reader(self._source)
        if self._write_fd >= 0:
            self._loop.remove_writer(self._write_fd)
        for fd in (self._source, self.read_fd, self._write_fd):
            if fd >= 0:
                os.close(fd)
        self._source = self.read_fd = self._write_fd = -1


def _unread_bytes(fd: int) -> int:
    answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("i", answer)[0])
