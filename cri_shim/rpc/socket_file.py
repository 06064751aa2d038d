"""Places a unix socket at its path only when it is complete: with mode and group set and a server listening.

grpc binds a socket with mode 0755 and the process's group. When it stops, it unlinks the path that it bound, which by
then may be another server's socket. So grpc binds in a directory that only root may enter. Mode and group are set
there, and rename(2) moves the socket to its path. At the end the path is unlinked only if it still has our inode.
"""

from __future__ import annotations

import grp
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from cri_shim.errors import AlreadyExistsError, ConfigError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from pathlib import Path

MAX_PATH_BYTES: Final = 107
"""The size of `sun_path` (unix(7)) without the final NUL."""
_PROBE_TIMEOUT_S: Final = 1.0


class SocketFile:
    """The socket at `path`. The caller holds the lock on `path`."""

    def __init__(self, path: Path, *, mode: int, group: str) -> None:
        """`group` is a name or a number; "" keeps the process's own group."""
        self.path = path
        self._mode = mode
        self._group = group
        self._directory = path.parent / f".{path.name}.new"
        self._is_prepared = False
        self._inode: tuple[int, int] | None = None

    @property
    def bind_path(self) -> Path:
        """The path at which the server binds, between `prepare` and `publish`."""
        return self._directory / "s"

    def prepare(self) -> None:
        """Make the private directory to bind in, and remove one that an earlier run left.

        Raises: ConfigError if the path cannot hold a socket, AlreadyExistsError if a server answers on it.
        """
        if len(os.fsencode(self.bind_path)) > MAX_PATH_BYTES:
            raise ConfigError(
                f"listen: the socket path {self.path} is too long: a path of a unix socket has at most "
                f"{MAX_PATH_BYTES} bytes, of which cri-shim needs 7 for a directory beside it; choose a shorter one"
            )
        self._gid()  # fail on an unknown group before anything is created
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._refuse_if_taken()
            self._discard_directory()
            self._directory.mkdir(mode=0o700)
            self._is_prepared = True
        except OSError as error:
            raise ConfigError(
                f"listen: cannot make a socket at {self.path}: {error.strerror}"
            ) from error

    def publish(self) -> None:
        """Give the bound socket its mode and group, and move it to its path, where it replaces a dead socket.

        Raises: ConfigError if chown(2), chmod(2) or rename(2) fails.
        """
        try:
            found = os.stat(self.bind_path)
            gid = self._gid()
            if gid is not None and gid != found.st_gid:
                os.chown(self.bind_path, -1, gid)
            os.chmod(self.bind_path, self._mode)
            os.rename(self.bind_path, self.path)
            self._inode = (found.st_dev, found.st_ino)
            self._directory.rmdir()
        except OSError as error:
            raise ConfigError(
                f"listen: cannot place the socket at {self.path}: {error.strerror}"
            ) from error

    def withdraw(self) -> None:
        """Remove our socket, at its path or still in the private directory. Another server's socket stays."""
        if self._is_prepared:
            self._discard_directory()
            self._is_prepared = False
        inode, self._inode = self._inode, None
        try:
            found = os.stat(self.path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == inode:
                self.path.unlink()
        except FileNotFoundError:
            pass  # someone else removed it

    def _gid(self) -> int | None:
        if not self._group:
            return None
        if self._group.isdigit():
            return int(self._group)
        try:
            return grp.getgrnam(self._group).gr_gid
        except KeyError:
            raise ConfigError(
                f"socket.group: group {quoted(self._group)} does not exist on this host: create it, or set another"
            ) from None

    def _refuse_if_taken(self) -> None:
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigError(
                f"listen: {self.path} exists and is not a socket: move it away, or listen elsewhere"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            try:
                probe.connect(os.fspath(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                return  # no process listens: a killed server left its socket behind
            except OSError:
                pass  # e.g. EAGAIN for a full backlog: a server listens, though it does not accept
        raise AlreadyExistsError(
            f"listen: another server answers on {self.path}: stop it, or listen elsewhere"
        )

    def _discard_directory(self) -> None:
        try:
            self.bind_path.unlink(missing_ok=True)
            self._directory.rmdir()
        except FileNotFoundError:
            pass  # the usual case: no earlier run left anything
