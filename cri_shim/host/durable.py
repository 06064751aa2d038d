"""Making what was written survive a power cut.

Rules: nothing "counts" before it is durable, and a name is durable only with its directory. Many small files are
cheaper to write out with the whole file system (syncfs) than one by one. Blocking; `OSError` passes.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syncfs.argtypes = (ctypes.c_int,)


def sync_file_system(path: Path) -> None:
    """Write out everything that is dirty on the file system of the directory `path`.

    Raises OSError also for an earlier write of any file there that failed (Linux 5.8).
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
