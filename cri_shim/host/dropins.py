"""Drop-in directories: small files of the node's administrator that say what root is to do, read when they change.

Rules:
- Directories in the order given, files by name. What can't be used counts as not there; its problem is kept and
  logged once.
- Whoever asks gets what the files say now: each question compares the files' identities and times with what was
  read, which costs some microseconds and misses nothing. The inotify watch only makes the log prompt.
- A file counts only if nobody but root could have written it, and what is checked is what is read.
- `current` and `read_owned` block, and may be called from any thread; the rest is for the loop's.
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
"""Of one directory: more is no configuration."""
_Stamp = tuple[int, int, int, int, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DropIn(Generic[T]):
    """One file: what it means, or what is wrong with it."""

    path: Path
    priority: int
    """The place of its directory in the list: the later, the higher."""
    stamp: _Stamp
    value: T | None
    problem: str = ""


class DropIns(Generic[T]):
    """The files of some directories that end in one of `suffixes`, each understood by `parse`.

    `parse` is given path and bytes, and may raise CriShimError.
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
        """Every file as it is now, also those with a problem; lower priority first, then by name."""
        with self._lock:
            self._refresh()
            return list(self._files.values())

    def problems(self) -> list[str]:
        """What is wrong with files and directories now, one sentence each."""
        files = self.current()
        return [*self._unreadable.values(), *(file.problem for file in files if file.problem)]

    # --- following -----------------------------------------------------------------------------------------------

    def watch(self, background: Background) -> None:
        """Follow the directories from now on, those that are there; inside the running loop."""
        self._background = background
        self.follow()

    def follow(self) -> None:
        """Follow directories that were made, or replaced, meanwhile."""
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
                    "can't watch a directory; changes count at the next question",
                    directory=str(directory),
                    error=str(error),
                )
            self._watches[directory] = (identity, watch)
            self._look()

    def close(self) -> None:
        """Stop following. Idempotent."""
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
                unreadable[directory] = f"{directory}: {error.strerror}"
                continue
            if len(stamps) > MAX_FILES:
                unreadable[directory] = f"{directory}: more than {MAX_FILES} files: none is read"
                continue
            for path, stamp in stamps.items():
                known = self._files.get(path)
                same = known is not None and known.stamp == stamp
                found[path] = known if known and same else self._load(path, priority, stamp)
        for directory, problem in unreadable.items():
            if self._unreadable.get(directory) != problem:
                log.warning(f"{self._what}: a directory can't be read", problem=problem)
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
            problem = f"{path}: can't be read: {error.strerror}"
        log.warning(f"{self._what}: a file can't be used", problem=problem)
        return DropIn(path, priority, stamp, None, problem)


def read_owned(path: Path, max_bytes: int) -> bytes:
    """The whole of a regular file that only root could have written.

    Raises ConfigError for any other file and for one of more than `max_bytes`, OSError when it can't be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block us
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is not a regular file")
        if why := distrust(status):
            raise ConfigError(f"{path}: {why}")
        if status.st_size > max_bytes:
            raise ConfigError(f"{path}: is larger than {max_bytes} bytes")
        chunks = []
        left = max_bytes
        while left > 0 and (chunk := os.read(fd, left)):
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def distrust(status: os.stat_result) -> str:
    """Why a file could be the work of somebody else than root (or ourselves); "" if it can't."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {status.st_uid}: it must belong to root (chown root)"
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != 0):
        return "others than root may write it (chmod go-w)"
    return ""
