"""Programs are found as a shell would find them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from cri_shim.host.programs import find_program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def search_path(tmp_path: Path) -> str:
    """Three directories, of which the first is missing."""
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    return ":".join(str(tmp_path / name) for name in ("a", "b", "c"))


def make(path: Path, mode: int = 0o755) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_the_first_of_the_path_counts(tmp_path: Path, search_path: str) -> None:
    later = make(tmp_path / "c" / "runc")
    assert find_program("runc", search_path) == later
    earlier = make(tmp_path / "b" / "runc")
    assert find_program("runc", search_path) == earlier == shutil.which("runc", path=search_path)


def test_directories_and_what_may_not_be_run_are_passed_over(
    tmp_path: Path, search_path: str
) -> None:
    (tmp_path / "b" / "runc").mkdir()
    assert find_program("runc", search_path) is None
    make(tmp_path / "c" / "runc", 0o644)
    assert find_program("runc", search_path) is None


def test_a_name_with_a_slash_is_that_very_file(tmp_path: Path, search_path: str) -> None:
    file = make(tmp_path / "runc")
    assert find_program(file, search_path) == file
    assert find_program(f"{file}-missing", search_path) is None


def test_no_name_is_no_program(search_path: str) -> None:
    assert find_program("", search_path) is None
