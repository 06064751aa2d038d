"""Makes written files survive a power failure.

Many small files are cheaper to write out with the whole file system (syncfs(2)) than with an fsync(2) each. Blocking;
`OSError` passes.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.syncfs.argtypes = (ctypes.c_int,)


def sync_file_system(path: Path) -> None:
    """Write out all dirty data and metadata of the file system of the directory `path`.

    Since Linux 5.8 it raises OSError also if an earlier writeback of any file on that file system failed.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(fd)
