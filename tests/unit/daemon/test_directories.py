from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.daemon.directories import prepare_directories
from cri_shim.errors import ConfigError
from cri_shim.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def paths(tmp_path: Path, netns_dir: Path) -> Paths:
    for name in ("root", "state"):
        (tmp_path / name).mkdir()
    return Paths(tmp_path / "root", tmp_path / "state")


def test_they_are_made_closed_and_may_be_there_already(paths: Paths) -> None:
    for _ in range(2):
        prepare_directories(paths)
    for directory in (paths.root, paths.sandboxes_dir, paths.pending_deletes_dir, paths.exits_dir):
        assert directory.stat().st_mode & 0o777 == 0o700
    for directory in (paths.state, paths.state / "sandboxes", paths.state / "containers"):
        assert directory.stat().st_mode & 0o777 == 0o711


def test_one_that_can_not_be_made_is_named(paths: Paths) -> None:
    paths.pending_deletes_dir.write_text("a file")
    with pytest.raises(
        ConfigError, match=r"cannot prepare directory .*pending_deletes: File exists"
    ):
        prepare_directories(paths)
