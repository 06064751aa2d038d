"""Reads drop-in directories: small configuration files of the administrator, such as CDI specs and OCI hooks.

Rules:
- Directories are read in the given order, files by name. An unusable file is skipped; its problem is kept, and logged
  once.
- `current` is always up to date: it compares inode, size and times of each file with those that were read, which takes
  microseconds. The inotify watch only makes log messages appear at once.
- A file is used only if root alone can write it. The check and the read use one descriptor, so that the file cannot be
  exchanged between them.
- `current` and `read_owned` block and may be called in any thread. The other methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog

from cri_shim.errors import ConfigError, CriShimError, ResourceExhaustedError
from cri_shim.host.inotify import FILES_CHANGED, DirectoryWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cri_shim.background import Background

log = structlog.get_logger()
MAX_FILES = 1000
"""In one directory. A larger directory is not a configuration directory, and is not read."""
_Stamp = tuple[int, int, int, int, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DropIn(Generic[T]):
    """One file: its parsed value, or the problem with it."""

    path: Path
    priority: int
    """The index of its directory in the list; a later directory has priority."""
    stamp: _Stamp
    value: T | None
    problem: str = ""


class DropIns(Generic[T]):
    """The files in several directories whose names end with one of `suffixes`.

    `parse` gets path and content, and may raise CriShimError.
    """

    def __init__(
        self,
        what: str,
        directories: Sequence[Path],
        suffixes: tuple[str, ...],
        parse: Callable[[Path, bytes], T],
        *,
        max_bytes: int,
    ) -> None:
        self._what = what
        self._directories = list(dict.fromkeys(directories))
        self._suffixes = suffixes
        self._parse = parse
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._files: dict[Path, DropIn[T]] = {}
        self._unreadable: dict[Path, str] = {}
        self._watches: dict[Path, tuple[tuple[int, int], DirectoryWatch | None]] = {}
        self._background: Background | None = None

    def current(self) -> list[DropIn[T]]:
        """Every file as it is now, also unusable ones, by priority and then by name. Blocks for a stat per file."""
        with self._lock:
            self._refresh()
            return list(self._files.values())

    def problems(self) -> list[str]:
        """The present problems with files and directories, one sentence each. Blocks as `current` does."""
        files = self.current()
        return [*self._unreadable.values(), *(file.problem for file in files if file.problem)]

    # --- following -----------------------------------------------------------------------------------------------

    def watch(self, background: Background) -> None:
        """Watch those of the directories that exist, from now on. Call it in the running loop."""
        self._background = background
        self.follow()

    def follow(self) -> None:
        """Watch directories that were created or replaced since the last call."""
        if self._background is None:
            return
        for directory in self._directories:
            try:
                status = os.stat(directory)
            except OSError:
                self._unwatch(directory)
                continue
            identity = (status.st_dev, status.st_ino)
            known = self._watches.get(directory)
            if known is not None and known[0] == identity and not (known[1] and known[1].lost):
                continue
            self._unwatch(directory)
            watch: DirectoryWatch | None = None
            try:
                watch = DirectoryWatch(directory, FILES_CHANGED, lambda _name: self._look())
            except (OSError, ResourceExhaustedError) as error:
                log.warning(
                    "cannot watch a directory; its changes are found at the next use",
                    directory=str(directory),
                    error=str(error),
                )
            self._watches[directory] = (identity, watch)
            self._look()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._background = None
        for directory in list(self._watches):
            self._unwatch(directory)

    def _look(self) -> None:
        if self._background is not None:
            self._background.start(f"reading {self._what}", self._read_again())

    async def _read_again(self) -> None:
        await asyncio.to_thread(self.current)

    def _unwatch(self, directory: Path) -> None:
        _, watch = self._watches.pop(directory, (None, None))
        if watch is not None:
            watch.close()

    # --- reading -------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        found: dict[Path, DropIn[T]] = {}
        unreadable: dict[Path, str] = {}
        for priority, directory in enumerate(self._directories):
            try:
                stamps = self._scan(directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                unreadable[directory] = f"cannot read directory {directory}: {error.strerror}"
                continue
            if len(stamps) > MAX_FILES:
                unreadable[directory] = (
                    f"directory {directory} has more than {MAX_FILES} files: none of them is read"
                )
                continue
            for path, stamp in stamps.items():
                known = self._files.get(path)
                same = known is not None and known.stamp == stamp
                found[path] = known if known and same else self._load(path, priority, stamp)
        for directory, problem in unreadable.items():
            if self._unreadable.get(directory) != problem:
                log.warning(f"{self._what}: directory ignored", problem=problem)
        if found.keys() != self._files.keys():
            log.info(f"{self._what} loaded", files=[str(path) for path in found])
        self._files, self._unreadable = found, unreadable

    def _scan(self, directory: Path) -> dict[Path, _Stamp]:
        with os.scandir(directory) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.endswith(self._suffixes) and not entry.name.startswith(".")
            )
        stamps: dict[Path, _Stamp] = {}
        for name in names:
            try:
                status = os.stat(directory / name)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                stamps[directory / name] = (
                    status.st_dev,
                    status.st_ino,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
        return stamps

    def _load(self, path: Path, priority: int, stamp: _Stamp) -> DropIn[T]:
        try:
            return DropIn(
                path, priority, stamp, self._parse(path, read_owned(path, self._max_bytes))
            )
        except CriShimError as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot read {path}: {error.strerror}"
        log.warning(f"{self._what}: file ignored", problem=problem)
        return DropIn(path, priority, stamp, None, problem)


def read_owned(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file that only root can write.

    Raises ConfigError for any other file and for one larger than `max_bytes`, OSError if it cannot be read.
    """
    # O_NONBLOCK: an open of a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a regular file")
        if why := distrust(status):
            raise ConfigError(f"{path}: {why}")
        if status.st_size > max_bytes:
            raise ConfigError(f"{path} has {status.st_size} bytes; the limit is {max_bytes}")
        chunks = []
        left = max_bytes
        while left > 0 and (chunk := os.read(fd, left)):
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def distrust(status: os.stat_result) -> str:
    """Why a user other than root (or ours) could have written the file; "" if none could."""
    if status.st_uid not in (0, os.geteuid()):
        return f"owned by user {status.st_uid}, but must be owned by root: chown it"
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != 0):
        return "writable by users other than root: chmod go-w it"
    return ""
