"""Where a log may go, and what is made for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, InvalidArgumentError
from cri_shim.sandbox.container_log import log_path, make_log_directory

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
    with pytest.raises(CriShimError, match="log directory"):
        make_log_directory(str(logs), logs / "main/deep/0.log")
    assert list(outside.iterdir()) == []
