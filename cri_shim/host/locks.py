"""Exclusive file locks (flock(2)), so that one daemon at a time uses a directory or a socket.

Rules:
- The kernel releases a lock when the last descriptor of the open file is closed, also if the holder is killed. So the
  descriptor must not reach a child that outlives us: it is close-on-exec, and a child that forks without exec closes
  it.
- The file stays after `release`. If it were removed, two processes could hold a lock on two inodes with the same name.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from cri_shim.errors import AlreadyExistsError, PermissionRefusedError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_MAX_PID_BYTES = 32


class FileLock:
    """An exclusive lock on `path`. The file contains the holder's pid, for the error message of other processes."""

    def __init__(self, path: Path, *, protects: str) -> None:
        """`protects` names the protected object in messages, e.g. ``root directory /var/lib/cri-shim``."""
        self.path = path
        self._protects = protects
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock without waiting. Creates the file and its directory if they are missing.

        Raises: AlreadyExistsError with the holder's pid; PermissionRefusedError or UnavailableError if the file cannot
        be opened.
        """
        if self._fd is not None:
            raise AlreadyExistsError(f"this process already holds the lock on {self._protects}")
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._fd = self._locked_descriptor()
        except PermissionError as error:
            raise PermissionRefusedError(
                f"cannot lock {self._protects}: {self.path}: {error.strerror}; run it as root"
            ) from error
        except OSError as error:
            raise UnavailableError(
                f"cannot lock {self._protects}: {self.path}: {error.strerror}"
            ) from error

    def release(self) -> None:
        """Release the lock. No effect if it is not held."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.ftruncate(fd, 0)
            os.close(fd)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _locked_descriptor(self) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._lock(fd)
                # The file may have been removed or replaced between our open and our lock: the lock would then be on
                # an inode that no other process opens.
                if self._is_current(fd):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, _MAX_PID_BYTES, 0).decode("ascii", "replace").strip()
            holder = f"process {pid}" if pid.isdigit() else "another process"
            raise AlreadyExistsError(
                f"{self._protects} is in use by {holder}, which holds {self.path}: "
                "stop that daemon, or choose other directories and sockets"
            ) from None

    def _is_current(self, fd: int) -> bool:
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))
