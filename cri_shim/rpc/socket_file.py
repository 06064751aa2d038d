"""A unix socket that appears at its path complete: with its mode, its group, and somebody listening.

grpc binds with mode 0755 and unlinks what it bound when it stops, which by then may be another server's socket. So it
binds inside a directory that only we may enter; mode and group are set there, a rename puts the socket in its place,
and at the end the path is removed only if it still leads to our inode.
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
"""`sun_path` of unix(7) less its final NUL."""
_PROBE_TIMEOUT_S: Final = 1.0


class SocketFile:
    """The socket at `path`, on its way in and out. The caller holds the lock on `path`."""

    def __init__(self, path: Path, *, mode: int, group: str) -> None:
        """`group` is a name or a number; empty keeps the process's own."""
        self.path = path
        self._mode = mode
        self._group = group
        self._directory = path.parent / f".{path.name}.new"
        self._is_prepared = False
        self._inode: tuple[int, int] | None = None

    @property
    def bind_path(self) -> Path:
        """Where the server has to bind."""
        return self._directory / "s"

    def prepare(self) -> None:
        """Make the private directory to bind in, over the remains of an earlier run.

        Raises: ConfigError when the path can't hold a socket, AlreadyExistsError when a server answers on it.
        """
        if len(os.fsencode(self.bind_path)) > MAX_PATH_BYTES:
            raise ConfigError(
                f"listen: the socket path {self.path} is too long: unix sockets have "
                f"{MAX_PATH_BYTES} bytes, of which cri-shim needs 7 for itself"
            )
        self._gid()  # an unknown group stops the start before anything is made
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._refuse_if_taken()
            self._discard_directory()
            self._directory.mkdir(mode=0o700)
            self._is_prepared = True
        except OSError as error:
            raise ConfigError(f"listen: {self.path}: {error.strerror}") from error

    def publish(self) -> None:
        """Give the bound socket its mode and group and move it to its path, replacing a dead one there.

        Raises: ConfigError when the host refuses.
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
            raise ConfigError(f"listen: {self.path}: {error.strerror}") from error

    def withdraw(self) -> None:
        """Remove what is ours at the path or on the way to it; another server's socket stays."""
        if self._is_prepared:
            self._discard_directory()
            self._is_prepared = False
        inode, self._inode = self._inode, None
        try:
            found = os.stat(self.path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == inode:
                self.path.unlink()
        except FileNotFoundError:
            pass  # somebody tidied up before us

    def _gid(self) -> int | None:
        if not self._group:
            return None
        if self._group.isdigit():
            return int(self._group)
        try:
            return grp.getgrnam(self._group).gr_gid
        except KeyError:
            raise ConfigError(
                f"socket.group: this host has no group {quoted(self._group)}: create it, or name another"
            ) from None

    def _refuse_if_taken(self) -> None:
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigError(
                f"listen: {self.path} exists and is no socket: move it away, or listen elsewhere"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            try:
                probe.connect(os.fspath(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                return  # nobody listens: left behind by a process that was killed
            except OSError:
                pass  # e.g. its backlog is full: somebody is there all the same
        raise AlreadyExistsError(
            f"listen: another server answers on {self.path}: stop it, or listen elsewhere"
        )

    def _discard_directory(self) -> None:
        try:
            self.bind_path.unlink(missing_ok=True)
            self._directory.rmdir()
        except FileNotFoundError:
            pass  # the usual case: nothing was left behind
