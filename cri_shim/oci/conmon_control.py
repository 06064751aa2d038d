"""Talk to a running conmon: its attach socket, and the control pipe for its log and its terminal's size.

Rules:
- `ctl` is a FIFO from which conmon reads lines (`attach_wire`). Send one line at a time: wait until conmon has read the
  last one. All writers run on the daemon's loop, so nothing comes between the check and the write.
- conmon opens a new log beside the old one and renames it over the name. A new inode under the name shows the end.
- The log may lie on a file system that hangs, so `stat` of it runs in a thread. Nothing else here blocks.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import termios
import time
from typing import TYPE_CHECKING

from cri_shim.errors import DeadlineError, WrongStateError
from cri_shim.kernel_call import in_time_for, working_on
from cri_shim.oci.attach_wire import REOPEN_LINE, resize_line

if TYPE_CHECKING:
    from pathlib import Path

_PAUSE_S = 0.002


async def reopen_log(bundle_dir: Path, log_file: Path, *, timeout_s: float) -> None:
    """Have the monitor open a new file at `log_file`, and return when the file is there.

    The caller has renamed the old file. conmon replaces a file that still has the name; it does not append.

    Raises:
        WrongStateError: the monitor has exited.
        DeadlineError: no new file within `timeout_s`. The monitor may be blocked by a client that doesn't read.
    """
    before = await in_time_for(str(bundle_dir), "looking at the log", _inode, log_file)
    give_up_at = time.monotonic() + timeout_s
    what = f"reopening log {log_file}"
    fd = _open_control(bundle_dir, what)
    try:
        # conmon 2.1.6 treats several lines in one read as the first line repeated, so send one at a time.
        while _unread_bytes(fd):
            await _pause(fd, give_up_at, what, "does not read its control pipe")
        if _is_read(fd):
            # Only with a reader: without one the write fails with EPIPE. `_pause` then reports that conmon has exited.
            os.write(fd, REOPEN_LINE)
        while (
            after := await in_time_for(str(bundle_dir), "looking at the log", _inode, log_file)
        ) is None or after == before:
            await _pause(fd, give_up_at, what, "has not opened a new file")
    finally:
        os.close(fd)


async def resize_terminal(bundle_dir: Path, width: int, height: int, *, timeout_s: float) -> None:
    """Set the size of the container's terminal, in characters.

    Raises WrongStateError when the monitor has exited, DeadlineError when it doesn't read within `timeout_s`.
    """
    give_up_at = time.monotonic() + timeout_s
    what = f"resizing the terminal at {bundle_dir}"
    fd = _open_control(bundle_dir, what)
    try:
        while _unread_bytes(fd):
            await _pause(fd, give_up_at, what, "does not read its control pipe")
        if _is_read(fd):
            os.write(fd, resize_line(width, height))
    finally:
        os.close(fd)


def connect_attach(bundle_dir: Path) -> socket.socket:
    """Connect to the monitor's attach socket. Raises WrongStateError when the monitor has exited, OSError."""
    gone = WrongStateError(f"attaching at {bundle_dir}: the container's monitor has exited")
    try:
        directory = os.open(bundle_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise gone from None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        # A socket's path is limited to 108 bytes (unix(7)); the bundle's may be longer.
        connection.connect(f"/proc/self/fd/{directory}/attach")
    except BaseException as error:
        connection.close()
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            raise gone from None
        raise
    finally:
        os.close(directory)
    return connection


async def _pause(fd: int, give_up_at: float, what: str, late: str) -> None:
    if not _is_read(fd):
        raise WrongStateError(f"{what}: the container's monitor has exited")
    if time.monotonic() >= give_up_at:
        raise DeadlineError(f"{what}: the container's monitor {late}")
    await asyncio.sleep(_PAUSE_S)


def _open_control(bundle_dir: Path, what: str) -> int:
    try:
        fd = os.open(bundle_dir / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        # ENXIO: no process has the FIFO open for reading. ENOENT: conmon never got as far as to make it.
        if error.errno in (errno.ENXIO, errno.ENOENT):
            raise WrongStateError(f"{what}: the container's monitor has exited") from None
        raise
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise WrongStateError(f"{what}: {bundle_dir / 'ctl'} is not the monitor's FIFO")
    return fd


def _is_read(fd: int) -> bool:
    """Whether a process still has the pipe's read end open: poll reports POLLERR when none has."""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)


def _unread_bytes(fd: int) -> int:
    answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("i", answer)[0])


def _inode(path: Path) -> tuple[int, int] | None:
    working_on("config.log_path", str(path))
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
