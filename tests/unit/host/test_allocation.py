from __future__ import annotations

from pathlib import Path

import pytest

from cri_shim.host.allocation import place_apart


def test_a_hint_changes_nothing_that_can_be_seen(tmp_path: Path) -> None:
    place_apart(tmp_path)
    place_apart(tmp_path)
    (tmp_path / "below").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["below"]


def test_a_file_system_without_the_hint_is_no_error() -> None:
    assert not place_apart(Path("/proc/self"))


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        place_apart(tmp_path / "nowhere")
