"""What is written down of a shim's objects comes back; what is not there, or damaged, is nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.oci.shim.records import ShimRecord, read_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

RECORD = ShimRecord("pod", "/bundle", "/run/s", 2, 7, 11)


def test_a_record_comes_back(tmp_path: Path) -> None:
    write_record(tmp_path / "new", "id", RECORD)
    assert read_record(tmp_path / "new", "id") == RECORD


def test_nothing_and_damage_are_none(tmp_path: Path) -> None:
    assert read_record(tmp_path, "id") is None
    (tmp_path / "id.json").write_text('{"pod_id": 3}')
    assert read_record(tmp_path, "id") is None
