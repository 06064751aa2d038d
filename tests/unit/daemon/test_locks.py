from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from cri_shim.daemon.locks import daemon_locks, root_lock
from cri_shim.errors import AlreadyExistsError, ConfigError
from cri_shim.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.config import Config


def test_a_daemon_locks_its_root_its_state_and_each_unix_socket(
    config: Config, tmp_path: Path
) -> None:
    paths = Paths(config.root, config.state)
    with ExitStack() as held:
        locks = [held.enter_context(lock) for lock in daemon_locks(config, paths)]
        assert [lock.path for lock in locks] == [
            tmp_path / "root/lock",
            tmp_path / "state/lock",
            tmp_path / "s.lock",
        ]
        with pytest.raises(AlreadyExistsError, match=f"root directory {tmp_path}/root is in use"):
            root_lock(paths).acquire()


def test_who_works_on_the_root_alone_keeps_a_daemon_out(config: Config) -> None:
    paths = Paths(config.root, config.state)
    with root_lock(paths):
        first = next(iter(daemon_locks(config, paths)))
        with pytest.raises(AlreadyExistsError):
            first.acquire()


def test_a_directory_that_can_not_be_made_is_named_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"^root: cannot create directory .*file/root: Not a directory$"
    ):
        root_lock(Paths(tmp_path / "file/root", tmp_path / "state"))
