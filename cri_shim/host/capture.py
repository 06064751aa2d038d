"""Captures the output of a child process through a pipe or in a file, up to a bound.

Rules:
- The pipe is read to its end, so that a full pipe never blocks the child for longer than `UNREAD_S`. Output beyond the
  bound is read and dropped.
- `start` closes our copy of the write end. Otherwise end of file would never arrive.
- A file is for a command that leaves its streams to another process: nobody needs to read for that one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

UNREAD_S = 0.05
"""Delay before the loop reads the pipe. Most children end within it, and `drain` then reads their output without a
turn of the loop for each pipe."""
_READ_BYTES = 65536  # a pipe's default capacity


class OutputFile:
    """A file in memory that takes `max_bytes`. Further writes fail, and all writes after `close`, in any process."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.write_fd = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.write_fd, max_bytes)  # takes no memory before it is written
            fcntl.fcntl(self.write_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except OSError:
            self.close()
            raise

    def text(self, max_bytes: int) -> str:
        """The last `max_bytes` that were written, as text; bytes that are not UTF-8 are replaced."""
        written = os.pread(self.write_fd, self._max_bytes, 0).rstrip(b"\0")
        return written[-max_bytes:].decode("utf-8", "replace")

    def close(self) -> None:
        """Drop what was written and free its memory, although other processes may have the file open."""
        try:
            os.ftruncate(self.write_fd, 0)
        finally:
            os.close(self.write_fd)


class Allowance:
    """A bound on the bytes that several captures keep together. A capture returns its bytes when it is closed."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, n_bytes: int) -> int:
        """Reserve up to `n_bytes`; returns how many were granted."""
        granted = min(n_bytes, self._left)
        self._left -= granted
        return granted

    def give_back(self, n_bytes: int) -> None:
        """Return `n_bytes` that are no longer kept."""
        self._left += n_bytes


class Capture:
    """One pipe, of which the first `max_bytes` are kept, or with `tail` the last."""

    def __init__(
        self, max_bytes: int, *, tail: bool = False, allowance: Allowance | None = None
    ) -> None:
        """`allowance` is a further bound, shared with other captures. It has no effect with `tail`."""
        self._max_bytes = max_bytes
        self._allowance = allowance
        self._tail = tail
        self._buffer = bytearray()
        self._on_overflow: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._reading = False
        self.overflowed = False
        self.eof: asyncio.Future[None] = self._loop.create_future()
        self._read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        # Programs reopen /dev/stdout, which checks the pipe's mode. Its owner is root of the host, and cannot be a user
        # of a container's user namespace, so anyone may write.
        os.fchmod(self.write_fd, 0o622)
        os.set_blocking(self._read_fd, False)  # the write end stays blocking, as programs expect

    def start(self, on_overflow: Callable[[], None] | None = None) -> None:
        """Close our copy of the write end, now that the child has its own, and read after `UNREAD_S`.

        `on_overflow` is called once, when output exceeds the bound.
        """
        self._close_write_fd()
        self._on_overflow = on_overflow
        self._later = self._loop.call_later(UNREAD_S, self.read_on)

    def read_on(self) -> None:
        """Read from now on whenever the pipe has data."""
        if self._read_fd >= 0 and not self._reading:
            self._loop.add_reader(self._read_fd, self._read_some)
            self._reading = True

    def drain(self) -> bool:
        """Read what an ended child left in the pipe. Returns whether end of file was reached.

        At most the pipe's capacity is read: a grandchild may hold the pipe and write faster than we read.
        """
        left = fcntl.fcntl(self._read_fd, fcntl.F_GETPIPE_SZ) if self._read_fd >= 0 else 0
        while left > 0 and (size := self._read_some()):
            left -= size
        if left <= 0:
            self._read_some()  # the pipe was full: end of file needs one more read
        return self.eof.done()

    def data(self) -> bytes:
        """The bytes kept."""
        return bytes(self._buffer[-self._max_bytes :] if self._tail else self._buffer)

    def text(self) -> str:
        """The bytes kept, as text. Bytes that are not UTF-8 are replaced."""
        return self.data().decode("utf-8", "replace")

    def close(self) -> None:
        """Close both ends, and return the bytes to the allowance. Idempotent."""
        self._close_write_fd()
        self._close_read_fd()
        if self._allowance is not None:
            self._allowance.give_back(len(self._buffer))
            self._buffer.clear()

    def _read_some(self) -> int:
        if self._read_fd < 0:
            return 0
        try:
            chunk = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        if chunk:
            self._keep(chunk)
        else:
            self._close_read_fd()
        return len(chunk)

    def _keep(self, chunk: bytes) -> None:
        if self._tail:
            self._buffer += chunk
            if len(self._buffer) > 16 * self._max_bytes:  # cut rarely: each cut copies the tail
                del self._buffer[: -self._max_bytes]
            return
        room = self._max_bytes - len(self._buffer)
        if self._allowance is not None:
            room = self._allowance.take(min(room, len(chunk)))
        self._buffer += chunk[:room]
        if len(chunk) > room and not self.overflowed:
            self.overflowed = True
            if self._on_overflow is not None:
                self._on_overflow()

    def _close_read_fd(self) -> None:
        if self._read_fd < 0:
            return
        if self._later is not None:
            self._later.cancel()
        if self._reading:
            self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)
        self._read_fd = -1
        self.eof.set_result(None)

    def _close_write_fd(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1


async def finish(captures: tuple[Capture, ...], grace_s: float) -> None:
    """Read the rest of the output. Wait up to `grace_s` only for pipes that a grandchild holds open."""
    held = [capture for capture in captures if not capture.drain()]
    for capture in held:
        capture.read_on()
    if held:
        await asyncio.wait({capture.eof for capture in held}, timeout=grace_s)
