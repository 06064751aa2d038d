from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.host import syscalls

if TYPE_CHECKING:
    from pathlib import Path


def test_failed_call_names_the_path_and_the_cause(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        syscalls.umount2(tmp_path / "none", syscalls.UMOUNT_NOFOLLOW)
    assert caught.value.filename == str(tmp_path / "none")
    assert caught.value.errno == errno.ENOENT


def test_failed_call_without_a_path_has_the_cause() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        syscalls.setns(-1, syscalls.CLONE_NEWNET)
    assert caught.value.errno == errno.EBADF


def test_openat2_closes_on_exec_and_keeps_to_its_rules(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    top = os.open(tmp_path, os.O_PATH)
    fd = syscalls.openat2(
        top, "made", os.O_CREAT | os.O_RDWR, mode=0o600, resolve=syscalls.RESOLVE_BENEATH
    )
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(OSError, match="link"):
        syscalls.openat2(top, "link", os.O_PATH, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    with pytest.raises(OSError, match=r"\.\.") as caught:
        syscalls.openat2(top, "..", os.O_PATH, resolve=syscalls.RESOLVE_BENEATH)
    assert caught.value.errno == errno.EXDEV
    os.close(top)


def test_subreaper_can_be_set_and_unset() -> None:
    before = syscalls.is_child_subreaper()
    syscalls.set_child_subreaper(enabled=True)
    assert syscalls.is_child_subreaper()
    syscalls.set_child_subreaper(enabled=False)
    assert not syscalls.is_child_subreaper()
    syscalls.set_child_subreaper(enabled=before)
