"""The pipes that hold a new conmon back and carry its report.

Rules:
- conmon waits until its start pipe closes, works, then writes one line of JSON to its sync pipe: the container's pid,
  or a negative number and the runtime's stderr.
- The line is untrusted. It is bounded, and conmon copies the runtime's stderr into it byte by byte, so it may be
  neither UTF-8 nor valid JSON.
- conmon keeps our stderr pipe only until it detaches. What it wrote there explains a missing report.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT

MAX_REPORT_BYTES = 64 * 1024
_STDERR_TAIL_BYTES = 4096
_CONTROL = re.compile(r"[\x00-\x1f]")
_OWN_WORDS = re.compile(r"^\[conmon:[a-z]\]:? ", re.MULTILINE)


class Report(msgspec.Struct, frozen=True):
    """conmon's report on a creation."""

    pid: int
    """The container's first process; negative when the runtime's `create` failed."""
    message: str = ""


class Pipe:
    """A close-on-exec pipe. Each end closes once: early, or with the stack that owns it."""

    def __init__(self, owner: contextlib.ExitStack) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        self._read_end = contextlib.ExitStack()
        self._write_end = contextlib.ExitStack()
        self._read_end.callback(os.close, self.read_fd)
        self._write_end.callback(os.close, self.write_fd)
        owner.callback(self.close_read)
        owner.callback(self.close_write)

    def close_read(self) -> None:
        """Close our read end."""
        self._read_end.close()

    def close_write(self) -> None:
        """Close our write end."""
        self._write_end.close()


async def read_line(fd: int, max_bytes: int) -> bytes:
    """Read up to a newline, end of file or `max_bytes`, whichever comes first."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    line = bytearray()

    def on_readable() -> None:
        try:
            chunk = os.read(fd, max_bytes)
        except BlockingIOError:
            return
        line.extend(chunk)
        # An empty read is the end: conmon has exited, or closed the pipe.
        if (not chunk or b"\n" in chunk or len(line) >= max_bytes) and not done.done():
            loop.remove_reader(fd)
            done.set_result(None)

    os.set_blocking(fd, False)
    loop.add_reader(fd, on_readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)
    return bytes(line)


def parse_report(line: bytes) -> Report | None:
    """Parse conmon's one line; None when it is not a report. Pure.

    conmon copies the runtime's bytes as they are. Invalid UTF-8, and control characters that conmon doesn't escape,
    are replaced.
    """
    text = _CONTROL.sub(" ", line.decode("utf-8", "replace"))
    try:
        return msgspec.json.decode(text, type=Report)
    except UNREADABLE_DOCUMENT:
        return None


def own_words(stderr_fd: int) -> str:
    """The text that conmon wrote to its stderr so far, without its log prefix."""
    os.set_blocking(stderr_fd, False)
    try:
        # One read is enough: a pipe holds at most 64 KiB.
        said = os.read(stderr_fd, 1 << 16)[-_STDERR_TAIL_BYTES:]
    except BlockingIOError:
        said = b""
    text = _OWN_WORDS.sub("", said.decode("utf-8", "replace")).strip()
    return text or "neither conmon nor the OCI runtime gave a reason"
