"""The seal of an unpacked layer: one digest over everything in its tree that a container could notice.

Rules:
- **Included**: names, types, modes, owners, device numbers, link targets, which names share an inode, sizes, times and
  contents of files, and extended attributes of files and directories. Excluded: times of directories and whiteouts,
  which say when the layer was unpacked, and `security.*` attributes other than capabilities, which the node's policy
  sets.
- Entries are ordered by the bytes of their names, and every field has its length, so that different trees can't have
  the same input.
- Directories are reached through descriptors and single names. No link and no mount point is crossed. Nothing recurses.
- Blocking and CPU-heavy: `inspector` runs it in its own process.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING

from cri_shim.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_VERSION = b"cri-shim layer seal 1"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO in a file's place must not block the open. O_NOATIME: reading must not write to every inode.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_SAME_MOUNT = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV
_CAPABILITY = "security.capability"
PIECE_BYTES = 1 << 20


def seal_of(root: Path, tell: Callable[[int], None]) -> str:
    """The seal of the tree `root`. `tell` is called with the number of file bytes just read.

    Raises OSError: unreadable files, EXDEV for a mount inside the tree, ESTALE if the tree changes meanwhile.
    """
    return _Sealer(tell).seal(root)


class _Level:
    """One directory on the way down, with its remaining names, last first."""

    __slots__ = ("identity", "names")

    def __init__(self, fd: int) -> None:
        found = os.fstat(fd)
        self.identity = (found.st_dev, found.st_ino)
        self.names = sorted(os.listdir(fd), key=os.fsencode, reverse=True)


class _Sealer:
    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._hash = hashlib.sha256(_VERSION)
        self._entries = 0
        self._linked: dict[int, int] = {}
        """Inode with several names -> number of the first entry that has it."""
        self._buffer = memoryview(bytearray(PIECE_BYTES))

    def seal(self, root: Path) -> str:
        fd = os.open(root, _DIRECTORY)
        try:
            self._directory(fd, "")
            levels = [_Level(fd)]
            while True:
                here = levels[-1]
                if here.names:
                    below = self._entry(fd, here.names.pop())
                    if below is not None:
                        os.close(fd)
                        fd = below
                        levels.append(_Level(fd))
                    continue
                self._put(b"end")
                levels.pop()
                if not levels:
                    return f"sha256:{self._hash.hexdigest()}"
                fd = _up(fd, levels[-1], root)
        finally:
            os.close(fd)

    def _entry(self, directory_fd: int, name: str) -> int | None:
        """Add one entry to the seal; returns the descriptor of a directory, whose entries come next."""
        found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        self._entries += 1
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            fd = syscalls.openat2(directory_fd, name, _DIRECTORY, resolve=_SAME_MOUNT)
            try:
                self._directory(fd, name)
            except BaseException:
                os.close(fd)
                raise
            return fd
        whiteout = kind == stat.S_IFCHR and found.st_rdev == 0
        self._put(
            b"entry",
            os.fsencode(name),
            b"%o %d %d" % (found.st_mode, found.st_uid, found.st_gid),
            b"" if whiteout else b"%d" % found.st_mtime_ns,
        )
        if found.st_nlink > 1:
            first = self._linked.setdefault(found.st_ino, self._entries)
            if first != self._entries:
                self._put(b"same as", b"%d" % first)
                return None
        if kind == stat.S_IFREG:
            self._file(directory_fd, name, found)
        elif kind == stat.S_IFLNK:
            self._put(b"link", os.fsencode(os.readlink(name, dir_fd=directory_fd)))
        else:
            self._put(b"node", b"%d" % found.st_rdev)
        return None

    def _directory(self, fd: int, name: str) -> None:
        found = os.fstat(fd)
        self._put(
            b"directory",
            os.fsencode(name),
            b"%o %d %d" % (found.st_mode, found.st_uid, found.st_gid),
        )
        self._attributes(fd)

    def _file(self, directory_fd: int, name: str, found: os.stat_result) -> None:
        fd = os.open(name, _FILE, dir_fd=directory_fd)
        try:
            size = found.st_size
            self._put(b"file", b"%d" % size)
            self._attributes(fd)
            while size > 0 and (count := os.readv(fd, [self._buffer])):
                self._hash.update(self._buffer[: min(count, size)])
                self._tell(count)
                size -= count
            if size != 0 or os.fstat(fd).st_ino != found.st_ino:
                raise OSError(errno.ESTALE, "the file changed while it was read", name)
        finally:
            os.close(fd)

    def _attributes(self, fd: int) -> None:
        try:
            names = sorted(os.listxattr(fd))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            names = []
        for name in names:
            if name == _CAPABILITY or not name.startswith("security."):
                self._put(b"attribute", os.fsencode(name), os.getxattr(fd, name))

    def _put(self, *fields: bytes) -> None:
        for field in fields:
            self._hash.update(b"%d:%b" % (len(field), field))


def _up(fd: int, parent: _Level, root: Path) -> int:
    above = os.open("..", _DIRECTORY, dir_fd=fd)
    os.close(fd)
    found = os.fstat(above)
    # If the directory was moved meanwhile, `..` leads elsewhere.
    if (found.st_dev, found.st_ino) != parent.identity:
        os.close(above)
        raise OSError(errno.ESTALE, "a directory was moved while the tree was read", str(root))
    return above
