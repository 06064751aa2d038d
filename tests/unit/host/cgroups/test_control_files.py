"""Control files read: numbers, chosen lines, and what is no such thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.host.cgroups.control_files import MAX_FILE_BYTES, Pairs, read_file, read_number

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"42\n", 42),
        (b"0", 0),
        (b"9223372036854771712\n", 9223372036854771712),
        *((text, None) for text in (b"max\n", b"", b"-1\n", b"1 2\n", b"\xff", b"12x")),
    ],
)
def test_a_number_is_read_and_nothing_else(tmp_path: Path, text: bytes, number: int | None) -> None:
    (tmp_path / "file").write_bytes(text)
    assert read_number(f"{tmp_path}/file") == number


def test_chosen_lines_are_read_whatever_is_beside_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a 1\nab 2\nb.c 3\nc -4\n x\nd\ne 5 6\na\xff 7\nf 8")
    pairs = Pairs(["a", "b.c", "c", "d", "e", "f", "g"])
    assert pairs.read(f"{tmp_path}/file") == {"a": 1, "b.c": 3, "f": 8}


def test_a_file_that_cannot_be_read_has_nothing(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/gone", str(tmp_path)):  # read(2) of a directory fails after the open
        assert read_file(path) is None
        assert read_number(path) is None
        assert Pairs(["a"]).read(path) == {}


def test_a_long_file_is_cut(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 2 * MAX_FILE_BYTES)
    assert len(read_file(f"{tmp_path}/file") or b"") == MAX_FILE_BYTES
