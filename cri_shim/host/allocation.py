"""Tells ext4 to allocate independent directory trees in different block groups.

ext4 allocates the inodes of a tree near those of its parent directory. It does not reuse an inode for some time after
it was freed, and checks each recently freed inode whenever it allocates one. So a large tree takes several times as
long to create where another one was just removed (measured: 30,000 files in 3 s instead of 1 s). Trees in different
block groups avoid this, and can be written in parallel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000
_NOT_KNOWN = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM})
_FLAGS = struct.Struct("i")


def place_apart(directory: Path) -> bool:
    """Set the "top of directory hierarchies" flag (chattr(1), T) on `directory`: its children are spread out.

    Returns False if the file system has no such flag. Raises OSError if `directory` cannot be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
        flags = _FLAGS.unpack_from(answer)[0] | _FS_TOPDIR_FL
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags) + bytes(4))
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise
        return False
    finally:
        os.close(fd)
    return True
