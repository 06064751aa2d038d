"""The end of a container's log: conmon 2.1 leaves a last line without a newline open, and readers wait for the rest.

Rules:
- Only what CRI's format calls open is closed: a record tagged P that is the last of its stream gets an empty one tagged
  F behind it. Nothing else is written, so that to close a log twice is to close it once.
- The file is found as everywhere (`container_log`): below the pod's directory, through no link, and it must be a
  regular file with one name. Whoever can write there could else have us write to a file, or open a device, of the node.
- A log that was rotated away meanwhile stays as it is.
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
"""How far back the last record of a stream is looked for: some eight of the longest."""
_STREAMS = (b"stdout", b"stderr")
_RECORD = re.compile(rb"(\S{20,40}) (stdout|stderr) ([FP]) ")


def close_log(log_directory: str, log_file: Path) -> None:
    """Close the lines that are open at the log's end. Blocking. Raises OSError."""
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
        if start:  # the first line may be the end of one
            tail = tail.partition(b"\n")[2]
        if records := closing_records(tail):
            os.write(fd, records)
    finally:
        os.close(fd)


def closing_records(tail: bytes) -> bytes:
    """What closes the streams whose last record in `tail`, the log's last lines, is open (pure).

    They bear the time of the log's last record: readers expect times to grow. A log whose own last line is cut off,
    as on a full disk, is left alone.
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
