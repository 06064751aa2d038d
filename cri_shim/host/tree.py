"""Whole directory trees: removed, measured.

A container wrote them, so they may be hostile: deeper than a path may be long or a process may hold descriptors,
full of links, changing under our feet.

Rules:
- Directories are reached by descriptors and single names, never by a path: down with `openat2`, which crosses
  neither a symbolic link nor a mount point (a bind of the same file system included), up with `..`.
- One descriptor is held at any depth. The way up is checked: a directory that was moved meanwhile ends the walk.
- Blocking; from a coroutine, call through `background.uninterrupted`.
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
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # no directory of that name any more
_MAX_RELISTINGS = 16
_MAX_WALKS = 3
_SHOWN_PATH_CHARS = 512
_ENTRIES_BETWEEN_QUESTIONS = 512
_MAX_LINKED = 100_000
"""Files with several names that a walk remembers, some 10 MB; further ones count once for each name."""


class DiskUsage(NamedTuple):
    """What a tree takes."""

    used_bytes: int
    """Blocks on disk, as du(1) counts: holes are free, a hard-linked file counts once (of the first 100,000)."""
    inodes: int


class _MovedError(OSError):
    """A directory left the tree while the walk was inside it."""


class _Level:
    """One directory on the way down."""

    __slots__ = ("identity", "name", "relistings", "subdirs")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.identity = _identity(fd)
        self.subdirs: list[str] = []
        """Still to be entered."""
        self.relistings = 0


class _Walk:
    """A place in a tree: one descriptor, and what is needed to find the way back up."""

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
        """Enter a subdirectory. Raises OSError: EXDEV at a mount point, ENOENT, ENOTDIR or ELOOP when it changed."""
        fd = syscalls.openat2(self.fd, name, _DIRECTORY | os.O_NOFOLLOW, resolve=_SAME_MOUNT)
        self._stand_in(fd)
        self.levels.append(_Level(name, fd))

    def up(self) -> str:
        """Leave a subdirectory; its name."""
        parent = os.open("..", _DIRECTORY, dir_fd=self.fd)
        if _identity(parent) != self.levels[-2].identity:
            os.close(parent)
            raise _MovedError(errno.ESTALE, "a directory left it during the walk", str(self._start))
        self._stand_in(parent)
        return self.levels.pop().name

    def path_of(self, name: str) -> str:
        """Where `name` in this directory is, for a message: the end of it when it is very long."""
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
    """Remove `path`, a directory or anything else, and all below it; nothing happens when it isn't there; blocking.

    Symbolic links are removed, not followed. A mount point is never entered: it raises OSError (EBUSY) with its
    path, and part of the rest may be gone by then; unmount and call again.
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
    """Remove what is no directory; note down what is one."""
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
                errno.EBUSY, "it is a mount point; unmount it first", walk.path_of(name)
            ) from error
        if error.errno in _CHANGED:
            _remove(walk, name)
            return
        raise OSError(error.errno, error.strerror, walk.path_of(name)) from error
    # Listed and removed as one goes: a directory may have millions of entries.
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
        # Some file systems skip entries of a listing while others are being removed.
        again = error.errno == errno.ENOTEMPTY and walk.here.relistings < _MAX_RELISTINGS
        if not again:
            raise OSError(error.errno, error.strerror, walk.path_of(name)) from error
        walk.here.relistings += 1
        walk.here.subdirs.append(name)
        return
    walk.here.relistings = 0


def disk_usage(path: Path, goes_on: Callable[[], bool] = lambda: True) -> DiskUsage:
    """What the directory `path` takes, on its own mount only; blocking.

    `goes_on` is asked after some hundred entries: once it says no, what was counted until then is the answer.
    What comes and goes meanwhile is counted or not. Raises OSError, FileNotFoundError when `path` isn't there.
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
    """Bytes and inodes of this directory itself and of what in it is no directory."""
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
                continue  # a file mounted over this one
            if found.st_nlink > 1:
                if found.st_ino in linked:
                    continue
                if len(linked) < _MAX_LINKED:
                    linked.add(found.st_ino)
            blocks += found.st_blocks
            inodes += 1
    return blocks * 512, inodes
