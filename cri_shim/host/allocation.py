"""A hint to the file system about where on the disk things go.

ext4 makes what is in a directory near that directory, and what is below, and does not use an inode again for a minute
after it was freed: it looks at every one of them, for each inode that it makes. A large tree made where a large tree
was removed takes several times as long (seen: 30,000 files, 3 s instead of 1). Trees that have nothing to do with each
other are better made apart, which also lets them be made side by side.
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
    """Have the trees right below `directory` made far from each other; whether the file system knows such a hint.

    chattr(1) calls it T. Raises OSError when `directory` can't be opened.
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
