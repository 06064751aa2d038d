"""Removes and measures directory trees.

A container wrote the trees, so they are untrusted: they may be deeper than PATH_MAX or the limit of open files allows,
contain any links, and change during the walk.

Rules:
- The walk uses descriptors and single names, never paths. Down it uses openat2(2), which here crosses neither symbolic
  links nor mount points, not even a bind mount of the same file system. Up it uses `..`.
- One descriptor is open at any depth. After `..` the directory's identity is checked: if it was moved, the walk ends.
- Blocking; a coroutine calls through `background.uninterrupted`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple, Self

from cri_shim.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SAME_MOUNT = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_BENEATH
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # the name is no directory any more
_MAX_RELISTINGS = 16
_MAX_WALKS = 3
_SHOWN_PATH_CHARS = 512
_ENTRIES_BETWEEN_QUESTIONS = 512
_MAX_LINKED = 100_000
"""Hard-linked files that a walk remembers, some 10 MB of memory. Further ones count once per name."""


class DiskUsage(NamedTuple):
    """Disk usage of a tree."""

    used_bytes: int
    """Allocated blocks in bytes, as du(1) counts.

    Holes are free, and a hard-linked file counts once (`_MAX_LINKED`).
    """
    inodes: int


class _MovedError(OSError):
    """A directory was moved while the walk was inside it."""


class _Level:
    """One directory between the root of the walk and its position."""

    __slots__ = ("identity", "name", "relistings", "subdirs")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.identity = _identity(fd)
        self.subdirs: list[str] = []
        """Subdirectories that the walk has yet to enter."""
        self.relistings = 0


class _Walk:
    """A position in a tree: one descriptor, and the levels above it."""

    def __init__(self, start: Path) -> None:
        self._start = start
        self.fd = os.open(start, _DIRECTORY)
        self.levels = [_Level("", self.fd)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    @property
    def here(self) -> _Level:
        return self.levels[-1]

    def down(self, name: str) -> None:
        """Enter a subdirectory. Raises OSError: EXDEV at a mount point; ENOENT, ENOTDIR or ELOOP if it changed."""
        fd = syscalls.openat2(self.fd, name, _DIRECTORY | os.O_NOFOLLOW, resolve=_SAME_MOUNT)
        self._stand_in(fd)
        self.levels.append(_Level(name, fd))

    def up(self) -> str:
        """Leave a subdirectory and return its name. Raises _MovedError if its parent is not where we came from."""
        parent = os.open("..", _DIRECTORY, dir_fd=self.fd)
        if _identity(parent) != self.levels[-2].identity:
            os.close(parent)
            raise _MovedError(
                errno.ESTALE, "a directory in it was moved during the walk", str(self._start)
            )
        self._stand_in(parent)
        return self.levels.pop().name

    def path_of(self, name: str) -> str:
        """The path of `name` in this directory, for a message. Of a very long path only the end is shown."""
        inside = "/".join([*(level.name for level in self.levels[1:]), name])
        if len(inside) > _SHOWN_PATH_CHARS:
            inside = "…" + inside[-_SHOWN_PATH_CHARS:]
        return f"{self._start}/{inside}"

    def _stand_in(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def remove_tree(path: Path) -> None:
    """Remove `path`, a directory or any other file, and everything below it; blocking. No effect if it does not exist.

    Symbolic links are removed, not followed. A mount point is never entered: OSError (EBUSY) with its path is raised.
    Part of the tree may be removed by then; unmount and call again.
    """
    if not os.path.lexists(path):
        return
    with _Walk(path.parent) as walk:
        _remove(walk, path.name)
        while len(walk.levels) > 1 or walk.here.subdirs:
            if walk.here.subdirs:
                _enter_to_empty(walk, walk.here.subdirs.pop())
            else:
                _leave_and_remove(walk)


def _remove(walk: _Walk, name: str) -> None:
    """Remove a file, or note a directory in `subdirs`."""
    try:
        os.unlink(name, dir_fd=walk.fd)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        walk.here.subdirs.append(name)
    except OSError as error:
        raise OSError(error.errno, error.strerror, walk.path_of(name)) from error


def _enter_to_empty(walk: _Walk, name: str) -> None:
    try:
        walk.down(name)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OSError(
                errno.EBUSY, "is a mount point; unmount it first", walk.path_of(name)
            ) from error
        if error.errno in _CHANGED:
            _remove(walk, name)
            return
        raise OSError(error.errno, error.strerror, walk.path_of(name)) from error
    # Entries are removed while they are listed, since a directory may have millions.
    with os.scandir(walk.fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                walk.here.subdirs.append(entry.name)
            else:
                _remove(walk, entry.name)


def _leave_and_remove(walk: _Walk) -> None:
    name = walk.up()
    try:
        os.rmdir(name, dir_fd=walk.fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        # Some file systems skip entries in readdir(3) while other entries are being removed: list it again.
        again = error.errno == errno.ENOTEMPTY and walk.here.relistings < _MAX_RELISTINGS
        if not again:
            raise OSError(error.errno, error.strerror, walk.path_of(name)) from error
        walk.here.relistings += 1
        walk.here.subdirs.append(name)
        return
    walk.here.relistings = 0


def disk_usage(path: Path, goes_on: Callable[[], bool] = lambda: True) -> DiskUsage:
    """Measure the directory `path` without other file systems mounted in it; blocking.

    `goes_on` is called after every few hundred entries. Once it returns False, the usage so far is returned. Files that
    appear or vanish meanwhile may or may not count. Raises OSError, FileNotFoundError if `path` does not exist.
    """
    for _ in range(_MAX_WALKS - 1):
        try:
            return _measure(path, goes_on)
        except _MovedError:
            continue
    return _measure(path, goes_on)


def _measure(path: Path, goes_on: Callable[[], bool]) -> DiskUsage:
    with _Walk(path) as walk:
        linked: set[int] = set()
        used_bytes, inodes = _measure_here(walk, linked, goes_on)
        while (len(walk.levels) > 1 or walk.here.subdirs) and goes_on():
            if not walk.here.subdirs:
                walk.up()
                continue
            name = walk.here.subdirs.pop()
            try:
                walk.down(name)
            except OSError as error:
                if error.errno == errno.EXDEV or error.errno in _CHANGED:
                    continue
                raise
            more_bytes, more_inodes = _measure_here(walk, linked, goes_on)
            used_bytes += more_bytes
            inodes += more_inodes
        return DiskUsage(used_bytes, inodes)


def _measure_here(walk: _Walk, linked: set[int], goes_on: Callable[[], bool]) -> tuple[int, int]:
    """Bytes and inodes of this directory and of the files in it. Subdirectories are noted in `subdirs`."""
    here = os.fstat(walk.fd)
    blocks, inodes = here.st_blocks, 1
    with os.scandir(walk.fd) as entries:
        for number, entry in enumerate(entries, 1):
            if number % _ENTRIES_BETWEEN_QUESTIONS == 0 and not goes_on():
                break
            try:
                if entry.is_dir(follow_symlinks=False):
                    walk.here.subdirs.append(entry.name)
                    continue
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_dev != here.st_dev:
                continue  # another file is bind-mounted over this one
            if found.st_nlink > 1:
                if found.st_ino in linked:
                    continue
                if len(linked) < _MAX_LINKED:
                    linked.add(found.st_ino)
            blocks += found.st_blocks
            inodes += 1
    return blocks * 512, inodes
