from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cri_shim.host import tree
from cri_shim.host.tree import DiskUsage, disk_usage, remove_tree

if TYPE_CHECKING:
    from pathlib import Path

DEPTH = 3000  # a path of 12 KiB, and three times the usual limit of descriptors


def make_deep(top: Path, depth: int) -> None:
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("dir", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("dir", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_tree_is_removed_with_all_kinds_of_files(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a/b/c").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "a/file").write_text("x")
    os.mkfifo(top / "a/b/fifo")
    (top / "a/link").symlink_to("/")
    os.link(top / "a/file", top / "hard")
    (top / "a" / os.fsdecode(b"\xff\n")).touch()
    remove_tree(top)
    assert os.listdir(tmp_path) == []
    remove_tree(top)
    remove_tree(tmp_path / "none" / "none")


def test_links_are_removed_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "top")
    remove_tree(tmp_path / "link")
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_single_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remove_tree(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_tree_deeper_than_any_path_is_measured_and_removed(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    make_deep(tmp_path / "top", DEPTH)
    assert disk_usage(tmp_path / "top").inodes == 2 * DEPTH + 1
    remove_tree(tmp_path / "top")
    assert os.listdir(tmp_path) == []
    assert os.listdir("/proc/self/fd") == before


def test_wide_directory_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for number in range(3000):
        (top / f"{number}").touch()
    remove_tree(top)
    assert os.listdir(tmp_path) == []


def test_entry_that_a_listing_skipped_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub/one").touch()
    real = os.rmdir

    def late_arrival(name: str, *, dir_fd: int) -> None:
        monkeypatch.setattr(os, "rmdir", real)
        (top / "sub/late").touch()
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", late_arrival)
    remove_tree(top)
    assert os.listdir(tmp_path) == []


def test_directory_that_can_not_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top/sub").mkdir(parents=True)

    def refuse(name: str, *, dir_fd: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(PermissionError) as caught:
        remove_tree(tmp_path / "top")
    assert caught.value.filename == f"{tmp_path}/top/sub"


def test_usage_is_what_du_counts(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/data").write_bytes(os.urandom(100_000))
    os.link(tmp_path / "a/data", tmp_path / "a/b/again")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    (tmp_path / "link").symlink_to("/usr")
    du = subprocess.run(["du", "-s", "-B1", str(tmp_path)], check=True, capture_output=True)
    usage = disk_usage(tmp_path)
    assert usage.used_bytes == int(du.stdout.split()[0])
    assert usage.inodes == 6
    assert isinstance(usage, DiskUsage)


def test_usage_of_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk_usage(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        disk_usage(tmp_path / "file")


def test_a_walk_that_is_to_end_says_what_it_counted_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_ENTRIES_BETWEEN_QUESTIONS", 10)
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
        for number in range(50):
            (tmp_path / directory / str(number)).touch()
    answers = iter([True, False])
    assert disk_usage(tmp_path, lambda: next(answers, False)).inodes == 1 + 1 + 9
    assert disk_usage(tmp_path).inodes == 103


def test_no_more_linked_files_are_remembered_than_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_MAX_LINKED", 2)
    for number in range(4):
        (tmp_path / f"{number}").touch()
        (tmp_path / f"{number} again").hardlink_to(tmp_path / f"{number}")
    assert disk_usage(tmp_path).inodes == 1 + 2 + 2 * 2


def test_directory_that_moves_away_is_measured_anew(tmp_path: Path) -> None:
    (tmp_path / "top/a/b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    asked = 0

    def move_meanwhile() -> bool:
        """It is asked before each step: down to a, down to b, and up again, when b is elsewhere."""
        nonlocal asked
        asked += 1
        if asked == 3:
            (tmp_path / "top/a/b").rename(tmp_path / "elsewhere/b")
        return True

    assert disk_usage(tmp_path / "top", move_meanwhile).inodes == 2
    assert asked > 3


def test_files_that_vanish_meanwhile_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "top/a").mkdir(parents=True)

    def remove_meanwhile() -> bool:
        """It is asked when top is listed, before the step down to a."""
        (tmp_path / "top/a").rmdir()
        return True

    assert disk_usage(tmp_path / "top", remove_meanwhile).inodes == 1
