"""Reaching a running conmon: its attach socket, and the control pipe for its log and the size of its terminal.

Rules: `ctl` is a FIFO that conmon reads lines from (`attach_wire`), one at a time: whoever writes waits until the last
one is read, and on the daemon's loop nothing comes between. conmon opens a new log beside the old one and renames it
over the name, so the name's inode changes when it is done. Nothing here blocks but a look at the log, which may lie on
a file system that never answers: that is made in a thread.
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
    """Have the monitor open a new file at `log_file`, and return when it is there.

    The caller has renamed the old one: a file that still has the name is replaced, not appended to.

    Raises:
        WrongStateError: the monitor is gone.
        DeadlineError: no new file within `timeout_s`; the monitor is stuck, on a client that doesn't read, say.
    """
    before = await in_time_for(str(bundle_dir), "looking at the log", _inode, log_file)
    give_up_at = time.monotonic() + timeout_s
    what = f"reopening log {log_file}"
    fd = _open_control(bundle_dir, what)
    try:
        # conmon 2.1.6 takes several lines read at once for repetitions of the first: only one at a time.
        while _unread_bytes(fd):
            await _pause(fd, give_up_at, what, "does not read its control pipe")
        if _is_read(fd):
            os.write(fd, REOPEN_LINE)
        while (
            after := await in_time_for(str(bundle_dir), "looking at the log", _inode, log_file)
        ) is None or after == before:
            await _pause(fd, give_up_at, what, "has not opened a new file")
    finally:
        os.close(fd)


async def resize_terminal(bundle_dir: Path, width: int, height: int, *, timeout_s: float) -> None:
    """Give the container's terminal a size, in characters.

    Raises WrongStateError when the monitor is gone, DeadlineError when it doesn't listen.
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
    """Connect to the monitor's attach socket. Raises WrongStateError when the monitor is gone, OSError."""
    gone = WrongStateError(f"attaching at {bundle_dir}: the container's monitor is gone")
    try:
        directory = os.open(bundle_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise gone from None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        # A socket's path has 108 bytes, the bundle's may have more.
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
        raise WrongStateError(f"{what}: the container's monitor is gone")
    if time.monotonic() >= give_up_at:
        raise DeadlineError(f"{what}: the container's monitor {late}")
    await asyncio.sleep(_PAUSE_S)


def _open_control(bundle_dir: Path, what: str) -> int:
    try:
        fd = os.open(bundle_dir / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):  # nobody reads it; it never was
            raise WrongStateError(f"{what}: the container's monitor is gone") from None
        raise
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise WrongStateError(f"{what}: {bundle_dir / 'ctl'} is no pipe of a monitor")
    return fd


def _is_read(fd: int) -> bool:
    """Whether somebody still has the pipe's reading end."""
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
