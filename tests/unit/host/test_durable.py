"""Writing out: what the kernel says of it comes back. That it is asked, tests of the image store count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.host.durable import sync_file_system

if TYPE_CHECKING:
    from pathlib import Path


def test_the_file_system_of_a_directory_is_written_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    sync_file_system(tmp_path)


def test_what_is_no_directory_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file"):
        sync_file_system(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        sync_file_system(tmp_path / "gone")
