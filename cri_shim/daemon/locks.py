"""The locks on root, state directory and sockets, which only one process at a time may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError
from cri_shim.host.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cri_shim.config import Config
    from cri_shim.paths import Paths


def root_lock(paths: Paths) -> FileLock:
    """The lock for processes that write below `root`. Creates the directory. Raises ConfigError."""
    return _directory_lock("root", paths.root)


def daemon_locks(config: Config, paths: Paths) -> Iterator[FileLock]:
    """The locks of a daemon: on root, state directory and each unix socket. Acquire each before iterating to the next.

    Raises ConfigError for a directory that cannot be created.
    """
    yield root_lock(paths)
    yield _directory_lock("state", paths.state)
    for url in config.listen:
        if url.socket_path is not None:
            path = url.socket_path
            yield FileLock(path.with_name(f"{path.name}.lock"), protects=f"socket {path}")


def _directory_lock(name: str, directory: Path) -> FileLock:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{name}: cannot create directory {directory}: {error.strerror}"
        ) from error
    return FileLock(directory / "lock", protects=f"{name} directory {directory}")
