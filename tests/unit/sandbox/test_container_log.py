"""Where a log may go, and what is made for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, InvalidArgumentError, WrongStateError
from cri_shim.sandbox.container_log import check_log_file, log_path, make_log_directory

if TYPE_CHECKING:
    from pathlib import Path


def test_no_log_is_kept_where_no_path_is_named() -> None:
    assert log_path("", "x") is None
    assert log_path("/logs", "") is None
    assert str(log_path("/logs", "main/0.log")) == "/logs/main/0.log"


@pytest.mark.parametrize(
    "path", ["a/", "a\0b", "..", "a/../b", "/absolute", "x" * 256, "a/" + "é" * 128 + "/b"]
)
def test_a_path_that_leaves_the_directory_or_fits_no_file_system_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.log_path"):
        log_path("/logs", path)


@pytest.mark.parametrize("path", ["a:b", "a/x\ny/b", "a\x7f"])
def test_a_path_that_the_monitor_can_not_be_told_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.log_path: .*monitor"):
        log_path("/logs", path)
    with pytest.raises(InvalidArgumentError, match=r"the pod's log_directory: .*monitor"):
        log_path(f"/logs/{path}", "0.log")


def test_the_longest_name_fits() -> None:
    assert log_path("/logs", "x" * 255) is not None


def test_the_directory_of_a_log_is_made_and_may_be_there_already(tmp_path: Path) -> None:
    logs = tmp_path / "pods/logs"
    for _ in range(2):
        make_log_directory(str(logs), logs / "main/deep/0.log")
    assert (logs / "main/deep").is_dir()
    assert list((logs / "main/deep").iterdir()) == []


def test_nothing_is_made_where_no_log_is_kept(tmp_path: Path) -> None:
    make_log_directory(str(tmp_path / "logs"), None)
    assert list(tmp_path.iterdir()) == []


def test_no_directory_is_made_outside_by_a_link(tmp_path: Path) -> None:
    logs, outside = tmp_path / "logs", tmp_path / "outside"
    logs.mkdir()
    outside.mkdir()
    (logs / "main").symlink_to(outside)
    with pytest.raises(WrongStateError, match=r"config\.log_path: .*main/deep is a symbolic link"):
        make_log_directory(str(logs), logs / "main/deep/0.log")
    assert list(outside.iterdir()) == []


def test_log_that_is_a_file_or_not_there_is_none_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "real/main").mkdir(parents=True)
    (tmp_path / "logs").symlink_to("real")  # the node's own choice
    log = tmp_path / "logs/main/0.log"
    check_log_file(str(tmp_path / "logs"), None)
    check_log_file(str(tmp_path / "logs"), log)
    log.touch()
    check_log_file(str(tmp_path / "logs"), log)


@pytest.mark.parametrize("name", ["0.log", "0.log.tmp"])
def test_log_that_is_a_link_or_no_file_is_refused(tmp_path: Path, name: str) -> None:
    log = tmp_path / "0.log"
    (tmp_path / name).symlink_to("/etc/passwd")
    with pytest.raises(WrongStateError, match=rf"config\.log_path: .*/{name} is a symbolic link"):
        check_log_file(str(tmp_path), log)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(WrongStateError, match=name):
        check_log_file(str(tmp_path), log)


def test_log_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs/real").mkdir(parents=True)
    (tmp_path / "logs/main").symlink_to("real")
    with pytest.raises(WrongStateError, match="logs/main is a symbolic link"):
        check_log_file(str(tmp_path / "logs"), tmp_path / "logs/main/0.log")
    (tmp_path / "logs/file").touch()
    with pytest.raises(WrongStateError, match="logs/file is a symbolic link"):
        check_log_file(str(tmp_path / "logs"), tmp_path / "logs/file/0.log")


def test_directory_of_logs_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(CriShimError, match="No such file"):
        check_log_file(str(tmp_path / "logs"), tmp_path / "logs/0.log")
