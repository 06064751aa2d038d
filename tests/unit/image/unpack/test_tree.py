"""Names of a layer's entries: where they lead, whatever they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.image.unpack.protocol import InputError
from cri_shim.image.unpack.tree import join, normalise, rounded


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a/b", b"a/b"),
        (b"./a//b/./", b"a/b"),
        (b"/etc/passwd", b"etc/passwd"),
        (b"../../etc", b"etc"),
        (b"a/../../b", b"b"),
        (b"a/b/..", b"a"),
        (b"..", b""),
        (b"./", b""),
        (b"\xff/ \n", b"\xff/ \n"),
    ],
)
def test_a_name_stays_inside_the_root(name: bytes, path: bytes) -> None:
    assert normalise(name) == path


@pytest.mark.parametrize("name", [b"x" * 256, b"a/" * 2048, b"a/" + b"b" * 300 + b"/c"])
def test_a_name_that_no_file_system_has_is_refused(name: bytes) -> None:
    with pytest.raises(InputError):
        normalise(name)


def test_a_path_that_grew_too_long_by_links_is_refused() -> None:
    with pytest.raises(InputError, match="links resolved"):
        join(b"d/" * 2000 + b"d", b"x" * 200)


@given(st.binary(max_size=300))
def test_no_name_has_a_part_that_leads_up(name: bytes) -> None:
    try:
        parts = normalise(name).split(b"/")
    except InputError:
        return
    assert not {b".", b".."} & set(parts)
    assert parts == [b""] or b"" not in parts


def test_disk_space_is_counted_in_blocks() -> None:
    assert [rounded(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
