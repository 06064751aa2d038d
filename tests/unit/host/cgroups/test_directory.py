"""Directories as the kernel shows them, made of ordinary files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.host.cgroups.directory import (
    first_bytes,
    has_anything,
    processes_in,
    remove_subtree,
    subtree,
    write_control,
)

if TYPE_CHECKING:
    from pathlib import Path


def cgroup(directory: Path, processes: str = "") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").write_text(processes)
    return directory


def test_a_cgroup_has_something_with_processes_or_cgroups_below_it(tmp_path: Path) -> None:
    empty = cgroup(tmp_path / "empty")
    full = cgroup(tmp_path / "full", "17\n")
    parent = cgroup(tmp_path / "parent")
    cgroup(parent / "child")
    assert [has_anything(str(each)) for each in (empty, full, parent, tmp_path / "gone")] == [
        *(False, True, True, False)
    ]


def test_all_processes_are_listed_however_many(tmp_path: Path) -> None:
    many = list(range(1, 40_000))
    directory = cgroup(tmp_path / "a", "".join(f"{pid}\n" for pid in many))
    assert processes_in(str(directory)) == many
    assert processes_in(str(tmp_path / "gone")) == []


def test_cgroups_come_before_what_is_below_them_and_go_after_it(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "c").mkdir()
    found = list(subtree(str(top)))
    assert found[0] == str(top)
    assert found.index(str(top / "a")) < found.index(str(top / "a/b"))
    assert set(found) == {str(top), *(str(top / name) for name in ("a", "a/b", "c"))}
    assert remove_subtree(str(top)) is None
    assert not top.exists()
    assert remove_subtree(str(top)) is None


def test_the_directory_that_is_busy_is_named(tmp_path: Path) -> None:
    directory = cgroup(tmp_path / "top" / "busy")  # of a file in it: not a cgroup, so it stays
    assert remove_subtree(str(tmp_path / "top")) == str(directory)


def test_control_files_are_written_where_they_are_and_read_to_the_first_bytes(
    tmp_path: Path,
) -> None:
    file = tmp_path / "pids.max"
    assert not write_control(str(file), "0")
    file.write_text("max")
    assert write_control(str(file), "0")
    assert first_bytes(str(file)) == b"0ax"  # a control file is no text to be cut
    file.write_text("9" * 1000)
    assert first_bytes(str(file)) == b"9" * 64
    with pytest.raises(FileNotFoundError):
        first_bytes(str(tmp_path / "gone"))


def test_no_descriptor_stays(tmp_path: Path) -> None:
    directory = str(cgroup(tmp_path / "a", "1\n"))
    before = os.listdir("/proc/self/fd")
    has_anything(directory)
    processes_in(directory)
    assert os.listdir("/proc/self/fd") == before
