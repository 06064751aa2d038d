"""Copies a directory tree with owners, modes, times, links, holes, special files and file capabilities.

The source comes from an image, so it is untrusted: it may contain any links, FIFOs, and large sparse files.

Rules:
- Directories are opened relative to the two roots with openat2(2), which here follows no symbolic link; entries by
  single names. Symbolic links are copied, never followed. Only regular files and directories are opened.
- Holes stay holes, so the copy takes no more disk space than the source. There is no other bound.
- Blocking; a coroutine calls through a thread. `OSError` passes, and a partial copy stays.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from cri_shim.host import syscalls

if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_INSIDE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_CHUNK_BYTES = 8 << 20
_CAPABILITY = "security.capability"


def copy_tree(source_fd: int, target: Path) -> None:
    """Copy attributes and content of the directory `source_fd` to the empty directory `target`; blocking."""
    target_fd = os.open(target, _DIRECTORY | os.O_CLOEXEC)
    # The caller's descriptor may be an O_PATH one, which cannot be listed: open the directory anew.
    source = syscalls.openat2(source_fd, ".", _DIRECTORY, resolve=_INSIDE)
    try:
        _Copy(source, target_fd).run()
    finally:
        os.close(source)
        os.close(target_fd)


class _Copy:
    """One copy under way."""

    def __init__(self, source_root: int, target_root: int) -> None:
        self._source_root = source_root
        self._target_root = target_root
        self._linked: dict[tuple[int, int], str] = {}
        """The first path of each hard-linked file, relative to the root."""
        self._times: list[tuple[str, tuple[int, int]]] = []
        """Times of directories, parents first. They are set at the end, since creating entries changes them."""

    def run(self) -> None:
        waiting = ["."]
        while waiting:
            waiting.extend(self._directory(waiting.pop()))
        for path, times in reversed(self._times):
            fd = syscalls.openat2(self._target_root, path, _DIRECTORY, resolve=_INSIDE)
            try:
                os.utime(fd, ns=times)
            finally:
                os.close(fd)

    def _directory(self, path: str) -> list[str]:
        """Copy a directory's attributes and files, and create its subdirectories. Returns those, to be copied next."""
        below = []
        source = syscalls.openat2(self._source_root, path, _DIRECTORY, resolve=_INSIDE)
        try:
            target = syscalls.openat2(self._target_root, path, _DIRECTORY, resolve=_INSIDE)
            try:
                info = os.fstat(source)
                with os.scandir(source) as entries:
                    for entry in entries:
                        inner = f"{path}/{entry.name}"
                        found = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(found.st_mode):
                            os.mkdir(entry.name, 0o700, dir_fd=target)
                            below.append(inner)
                        else:
                            self._entry(entry.name, inner, found, source, target)
                _copy_attributes(source, target, info)
            finally:
                os.close(target)
        finally:
            os.close(source)
        self._times.append((path, (info.st_atime_ns, info.st_mtime_ns)))
        return below

    def _entry(self, name: str, path: str, info: os.stat_result, source: int, target: int) -> None:
        if info.st_nlink > 1:
            first = self._linked.setdefault((info.st_dev, info.st_ino), path)
            if first != path:
                os.link(first, name, src_dir_fd=self._target_root, dst_dir_fd=target)
                return
        if stat.S_ISREG(info.st_mode):
            _copy_file(name, source, target)
            return
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        else:
            os.mknod(name, stat.S_IFMT(info.st_mode) | 0o600, info.st_rdev, dir_fd=target)
            os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
        times = (info.st_atime_ns, info.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


def _copy_file(name: str, source_dir: int, target_dir: int) -> None:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    source = os.open(name, os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=source_dir)
    try:
        info = os.fstat(source)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.ESTALE, "changed while it was copied", name)
        created = os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags
        target = os.open(name, created, 0o600, dir_fd=target_dir)
        try:
            _copy_data(source, target, info.st_size)
            _copy_attributes(source, target, info)
            os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_data(source: int, target: int, size: int) -> None:
    os.ftruncate(target, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            sent = os.sendfile(target, source, start, min(end - start, _CHUNK_BYTES))
            if sent == 0:
                return
            start += sent


def _copy_attributes(source: int, target: int, info: os.stat_result) -> None:
    """Copy owner, mode, then file capabilities and user.* attributes: fchown(2) clears set-ID bits and capabilities."""
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    for name in names:
        if name == _CAPABILITY or name.startswith("user."):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
