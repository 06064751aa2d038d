"""Closes the last line of a container's log. conmon 2.1 leaves a line without a newline open, and readers wait for
more.

Rules:
- If the last record of a stream is tagged P (partial), an empty record tagged F is appended. Nothing else is written,
  so closing a log twice has no further effect.
- The file is opened below the pod's log directory, through no link, and must be a regular file with a single name.
  Otherwise a container with the directory as a volume could have us write to another file of the node, or open a
  device.
- A log that was rotated away meanwhile is not changed.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from cri_shim.host.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES = 64 << 10
"""How far back the last record of a stream is searched: some eight records of the maximum length."""
_STREAMS = (b"stdout", b"stderr")
_RECORD = re.compile(rb"(\S{20,40}) (stdout|stderr) ([FP]) ")


def close_log(log_directory: str, log_file: Path) -> None:
    """Close open lines at the end of the log. Blocking. Raises OSError."""
    top = os.open(log_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = openat2(
            top,
            log_file.relative_to(log_directory),
            os.O_PATH,
            resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
        )
    except FileNotFoundError:
        return
    finally:
        os.close(top)
    try:
        seen = os.fstat(found)
        if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1:
            _close(found)
    finally:
        os.close(found)


def _close(found: int) -> None:
    fd = os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        start = max(os.fstat(fd).st_size - TAIL_BYTES, 0)
        tail = os.pread(fd, TAIL_BYTES, start)
        if start:  # the tail may begin in the middle of a line
            tail = tail.partition(b"\n")[2]
        if records := closing_records(tail):
            os.write(fd, records)
    finally:
        os.close(fd)


def closing_records(tail: bytes) -> bytes:
    """The records that close the streams whose last record in `tail` is partial. Pure.

    They have the time of the log's last record, since readers expect times to increase. If the last line of the file is
    truncated, as after a full disk, nothing is closed.
    """
    lines = tail.split(b"\n")
    if lines.pop():
        return b""
    at = b""
    tags: dict[bytes, bytes] = {}
    for line in reversed(lines):
        if (record := _RECORD.match(line)) is None:
            continue
        at = at or record[1]
        tags.setdefault(record[2], record[3])
        if len(tags) == len(_STREAMS):
            break
    return b"".join(b"%s %s F \n" % (at, each) for each in _STREAMS if tags.get(each) == b"P")
