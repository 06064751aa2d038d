"""One daemon at a time: exclusive locks on files, held until the process ends.

The kernel releases the lock with the last descriptor of the open file, however the holder dies. So the descriptor must
not reach a child that outlives us: it is close-on-exec, and a child forked without exec has to close it.

The file stays when the lock is given back: removing it would let two processes hold "the" lock on two different inodes.
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
    """An exclusive lock on `path`, with the holder's pid in the file for whoever is turned away."""

    def __init__(self, path: Path, *, protects: str) -> None:
        """`protects` names what the lock is about in messages, e.g. ``root directory /var/lib/cri-shim``."""
        self.path = path
        self._protects = protects
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock, making the file and its directory where they are missing; never waits.

        Raises: AlreadyExistsError naming the holder's pid; PermissionRefusedError or UnavailableError when the file
        can't be opened.
        """
        if self._fd is not None:
            raise AlreadyExistsError(f"the lock on {self._protects} is held by this object already")
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
        """Give the lock back; nothing happens when it is not held."""
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
                # Someone may have removed or replaced the file between our open and our lock.
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
