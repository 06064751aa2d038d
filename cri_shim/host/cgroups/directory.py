"""One cgroup's directory in one hierarchy: what is in it and below it, and its control files.

Rules: synchronous and short. A cgroup that is gone, or goes meanwhile, has nothing in it. `OSError` passes otherwise.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VANISHED = frozenset({errno.ENOENT, errno.ENODEV})
"""What the kernel answers where a cgroup has gone."""
_LINKS_OF_A_LEAF = 2
_FIRST_BYTES = 64
_CHUNK_BYTES = 65536


def subtree(top: str) -> Iterator[str]:
    """`top` and its descendants, parents first; nothing if `top` is gone."""
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        try:
            children = _names_below(directory)
        except OSError as error:
            if error.errno in VANISHED:
                continue
            raise
        yield directory
        waiting.extend(f"{directory}/{name}" for name in children)


def _names_below(directory: str) -> list[str]:
    # A directory of cgroupfs has two links, and one more for each subdirectory. Most cgroups have no children, and the
    # link count saves listing their many control files.
    if os.stat(directory).st_nlink == _LINKS_OF_A_LEAF:
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def processes_in(directory: str) -> list[int]:
    """The processes that the directory itself lists."""
    try:
        return [int(line) for line in _read_whole(f"{directory}/cgroup.procs").split()]
    except OSError as error:
        # EOPNOTSUPP: a threaded v2 cgroup. The cgroup that is its domain lists the processes.
        if error.errno in VANISHED or error.errno == errno.EOPNOTSUPP:
            return []
        raise


def has_anything(directory: str) -> bool:
    """Whether the cgroup has children or processes; False if it does not exist. Raises OSError."""
    try:
        if os.stat(directory).st_nlink != _LINKS_OF_A_LEAF:
            return True
    except FileNotFoundError:
        return False
    return bool(first_bytes(f"{directory}/cgroup.procs"))


def first_bytes(file: str) -> bytes:
    """The beginning of a short control file, enough for a number. Raises OSError."""
    # No object of io's, which asks the kernel four things more: a stop looks at a dozen of these.
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _FIRST_BYTES)
    finally:
        os.close(fd)


def _read_whole(file: str) -> bytes:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, _CHUNK_BYTES):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def remove_subtree(top: str) -> str | None:
    """Remove `top` and its descendants, children first. Returns the first busy directory, or None."""
    for directory in reversed(list(subtree(top))):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return directory
            if error.errno not in VANISHED:
                raise
    return None


def write_control(path: str, text: str) -> bool:
    """Write a control file. Returns False if it does not exist or the kernel rejects the write."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode("ascii"))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
