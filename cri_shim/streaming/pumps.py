"""The pumps between a process's descriptors and a session: output is read, input is written, without blocking.

Rules:
- One read and one write per turn of the event loop, of at most 256 KiB.
- Once the process has ended, its output is what is in the pipe by then. A child of it that keeps the pipe open delays
  nobody.
- Input that nobody reads any more is dropped, as a shell drops it when the next command of a pipe has ended.
- A full pipe becomes writable with each page that its reader takes. To write page by page costs twenty times as much,
  and takes CPU time from the very reader that is behind. So a pipe that stays full is left alone for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from cri_shim.streaming.backlog import Backlog
from cri_shim.streaming.connection import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.streaming.wire.buffers import Buffer

TERMINAL_BYTES = 64 << 10
"""More than the kernel buffers for a terminal's reader."""
MIN_REST_S = 0.001
MAX_REST_S = 0.016
"""Bounds of how long a full pipe is left alone. In the longest, a reader at 64 MB/s just empties 1 MiB."""


class Output:
    """Reads a pipe or terminal up to its end, unless paused."""

    def __init__(
        self, fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        """Takes over `fd`. Starts paused."""
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._on_data = on_data
        self._on_end = on_end
        self._running = False
        self._left: int | None = None
        """After the process has ended: how many more bytes can be its own."""

    @property
    def over(self) -> bool:
        """Whether the end was reached or `close` was called."""
        return self._fd < 0

    def resume(self) -> None:
        """Read."""
        if not self._running and self._fd >= 0:
            self._running = True
            if self._left is None:
                self._loop.add_reader(self._fd, self._read)
            else:
                self._loop.call_soon(self._read)

    def pause(self) -> None:
        """Stop reading. The pipe fills up, and then the process waits."""
        if self._running:
            self._running = False
            if self._left is None:
                self._loop.remove_reader(self._fd)

    def expect_end(self) -> None:
        """The process has ended: read what is in the pipe now, then end."""
        if self._fd < 0 or self._left is not None:
            return
        running = self._running
        self.pause()
        try:
            self._left = fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ)
        except OSError:
            self._left = TERMINAL_BYTES
        if running:
            self.resume()

    def close(self) -> None:
        """Stop reading for good; the process's next write gets EPIPE. Idempotent."""
        self.pause()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        if not self._running:
            return
        try:
            data = os.read(self._fd, CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            if self._left is not None:
                self._end()
            return
        except OSError:  # EIO: no process has the terminal open any more
            data = b""
        if not data:
            self._end()
            return
        if self._left is not None:
            self._left -= len(data)
        self._on_data(data)
        if self._left is None:
            return
        # No reader is registered now: an empty pipe that a child holds open would never wake one.
        if self._left <= 0:
            self._end()
        elif self._running:
            self._loop.call_soon(self._read)

    def _end(self) -> None:
        if self._fd >= 0:
            self.close()
            self._on_end()


class Input:
    """Writes to a pipe or terminal, in order."""

    def __init__(self, on_taken: Callable[[int], None]) -> None:
        """`on_taken` gets the number of bytes that were written or dropped. Bytes before `open` are kept."""
        self._loop = asyncio.get_running_loop()
        self._on_taken = on_taken
        self._backlog = Backlog()
        self._fd: int | None = None
        self._ends = self._writing = self._broken = False
        self._pipe_bytes = 0
        """The pipe's capacity; 0 for a terminal, which is never left alone."""
        self._rest_s = 0.0
        """How long to leave the full pipe alone. It doubles each time that little was taken."""
        self._rest: asyncio.TimerHandle | None = None

    @property
    def pending(self) -> int:
        """The number of bytes that wait."""
        return self._backlog.size

    @property
    def cost(self) -> int:
        """Their memory in bytes."""
        return self._backlog.cost

    def open(self, fd: int | None) -> None:
        """Begin to write to `fd`, which it takes over. None: nobody reads, so drop everything."""
        self._fd = fd
        self._broken = fd is None
        if fd is not None:
            with contextlib.suppress(OSError):
                self._pipe_bytes = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
        self._write()

    def write(self, data: Buffer) -> None:
        """Write more bytes, or let them wait."""
        taken = 0
        if not self.pending and self._fd is not None:
            # Without the backlog, which may have to copy.
            try:
                taken = os.write(self._fd, data)
            except OSError:  # full, or broken: the write from the backlog tells which
                taken = 0
        if taken < len(data):
            self._backlog.append(memoryview(data)[taken:] if taken else data)
            if not self._writing and (self._fd is not None or self._broken):
                self._write()
        if taken:
            self._on_taken(taken)

    def end(self) -> None:
        """Close the descriptor after the bytes that wait."""
        self._ends = True
        if not self.pending and self._fd is not None:
            self.close()

    def close(self) -> None:
        """Close the descriptor now and drop what waits. Idempotent."""
        if self._fd is not None:
            self._stop_waiting()
            os.close(self._fd)
            self._fd = None
        self._broken = True
        self._backlog.clear()

    def _write(self) -> None:
        taken = 0
        if self._fd is not None and self.pending:
            try:
                taken = os.writev(self._fd, self._backlog.buffers())
            except (BlockingIOError, InterruptedError):
                taken = 0
            except OSError:  # EPIPE: the reader closed the pipe; EIO: the terminal is gone
                taken = self.pending
                self.close()
            else:
                self._backlog.take(taken)
        if self._broken and self.pending:
            taken += self.pending
            self._backlog.clear()
        if self.pending and not self._writing and self._fd is not None:
            self._writing = True
            self._wait()
        elif not self.pending and self._fd is not None:
            self._stop_waiting()
            if self._ends:
                self.close()
        if taken:
            self._on_taken(taken)

    def _wait(self) -> None:
        """Wait until the pipe is writable, after leaving it alone if it was slow."""
        assert self._fd is not None  # noqa: S101 - something waits for it
        if self._rest_s:
            self._loop.remove_writer(self._fd)
            self._rest = self._loop.call_later(self._rest_s, self._look)
        else:
            self._look()

    def _look(self) -> None:
        self._rest = None
        if self._fd is not None:
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        before = self.pending
        self._write()
        taken = before - self.pending
        if taken < self._pipe_bytes // 16 and self._writing:
            self._rest_s = min(max(2 * self._rest_s, MIN_REST_S), MAX_REST_S)
        elif self._rest_s:
            self._rest_s = self._rest_s / 2 if self._rest_s > MIN_REST_S else 0.0
        if self._writing and self._rest_s:
            self._wait()

    def _stop_waiting(self) -> None:
        if self._writing and self._fd is not None:
            self._loop.remove_writer(self._fd)
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        self._writing = False
