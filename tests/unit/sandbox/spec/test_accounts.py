"""Account files of images, at their bounds."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.host.port import Host
from cri_shim.sandbox.spec.accounts import (
    MAX_ACCOUNT_FILE_BYTES,
    MAX_READ_BY_RUNTIMES_BYTES,
    account_file,
)
from tests.fakes.node_harness import container_config

if TYPE_CHECKING:
    from pathlib import Path

GROUP = "etc/group"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path


def test_what_is_there_is_read_up_to_a_bound_beyond_which_it_names_nobody(root: Path) -> None:
    config = container_config()
    assert account_file(Host(), root, GROUP, config) == b""
    (root / GROUP).write_bytes(b"a:x:1:")
    assert account_file(Host(), root, GROUP, config) == b"a:x:1:"
    for size in (MAX_ACCOUNT_FILE_BYTES + 1, MAX_READ_BY_RUNTIMES_BYTES):
        os.truncate(root / GROUP, size)
        assert account_file(Host(), root, GROUP, config) == b""
    (root / GROUP).unlink()
    (root / GROUP).symlink_to("group")
    assert account_file(Host(), root, GROUP, config) == b""


@pytest.mark.parametrize("size", [MAX_READ_BY_RUNTIMES_BYTES + 1, 1 << 40])
def test_what_runtimes_would_read_for_minutes_is_refused_with_its_size(
    root: Path, size: int
) -> None:
    (root / GROUP).touch()
    os.truncate(root / GROUP, size)
    with pytest.raises(InvalidArgumentError, match=rf"image: '/etc/group': has {size} bytes"):
        account_file(Host(), root, GROUP, container_config())


def test_what_runtimes_would_wait_for_is_refused(root: Path) -> None:
    os.mkfifo(root / GROUP)
    with pytest.raises(InvalidArgumentError, match="image: '/etc/group': is not a regular file"):
        account_file(Host(), root, GROUP, container_config())


@pytest.mark.parametrize("place", ["/etc", "/etc/group", "/etc//../etc/group/"])
def test_what_is_mounted_over_does_not_matter(root: Path, place: str) -> None:
    (root / GROUP).touch()
    os.truncate(root / GROUP, 1 << 40)
    config = container_config()
    config.mounts.add(container_path=place, host_path="/etc/hosts")
    assert account_file(Host(), root, GROUP, config) == b""


def test_file_that_shrank_meanwhile_is_not_refused(
    root: Path,
) -> None:
    class Shrinking(Host):
        @staticmethod
        def read_in_root(root: Path | int, path: str, max_bytes: int) -> bytes | None:
            raise OSError(errno.EFBIG, "larger")

    assert account_file(Shrinking(), root, GROUP, container_config()) == b""
