"""What a child writes to a pipe, read by the running loop within a bound.

Rules: the pipe is read until its end, so that a talkative child never blocks for longer than `UNREAD_S`; what is beyond
the bound is not stored. The write end is the child's: `start` closes ours, or the end of the pipe would never come.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

UNREAD_S = 0.05
"""How long a child is left alone: most have ended by then, and what they wrote is in the pipe. Looking for it earlier
takes the loop a turn for each pipe."""
_READ_BYTES = 65536  # a pipe's default capacity


class Allowance:
    """What several captures may keep together: whoever comes first has it, and gives it back when it closes."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, n_bytes: int) -> int:
        """How many of these bytes may be kept."""
        granted = min(n_bytes, self._left)
        self._left -= granted
        return granted

    def give_back(self, n_bytes: int) -> None:
        """So many are no longer kept."""
        self._left += n_bytes


class Capture:
    """One pipe: the first `max_bytes` of what comes, or with `tail` the last ones."""

    def __init__(
        self, max_bytes: int, *, tail: bool = False, allowance: Allowance | None = None
    ) -> None:
        """`allowance` bounds what is kept besides; not for a tail."""
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
        # Programs open /dev/stdout anew; to the users of a container's user namespace the pipe can't be given.
        os.fchmod(self.write_fd, 0o622)
        os.set_blocking(self._read_fd, False)  # this end only: the child's stays as programs expect

    def start(self, on_overflow: Callable[[], None] | None = None) -> None:
        """Give up our copy of the write end, now that the child has its own, and read: what is not drained by then."""
        self._close_write_fd()
        self._on_overflow = on_overflow
        self._later = self._loop.call_later(UNREAD_S, self.read_on)

    def read_on(self) -> None:
        """Read what comes, from now on."""
        if self._read_fd >= 0 and not self._reading:
            self._loop.add_reader(self._read_fd, self._read_some)
            self._reading = True

    def drain(self) -> bool:
        """Take what a child that has ended left in the pipe; True when the pipe's end was reached, too.

        That is no more than the pipe holds. Someone else may be writing on, faster than we read.
        """
        left = fcntl.fcntl(self._read_fd, fcntl.F_GETPIPE_SZ) if self._read_fd >= 0 else 0
        while left > 0 and (size := self._read_some()):
            left -= size
        if left <= 0:
            self._read_some()  # a full pipe's end comes after its last byte
        return self.eof.done()

    def data(self) -> bytes:
        """What was kept."""
        return bytes(self._buffer[-self._max_bytes :] if self._tail else self._buffer)

    def text(self) -> str:
        """What was kept, as text; bytes that are no UTF-8 are replaced."""
        return self.data().decode("utf-8", "replace")

    def close(self) -> None:
        """Close both ends, and forget what an allowance was used for; idempotent."""
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
            if len(self._buffer) > 16 * self._max_bytes:  # cut seldom: each cut moves the tail
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
