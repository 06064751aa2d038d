"""Terminal sizes as clients write them, and as they don't."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.streaming.wire.terminal_size import (
    MAX_OBJECT_BYTES,
    TerminalSize,
    TerminalSizeReader,
)
from tests.unit.streaming.wire.roleplay import cut


@pytest.mark.parametrize(
    "text",
    [
        b'{"Width":80,"Height":24}\n',
        b'{"Height": 24, "Width": 80}',
        b' {"width":80,"height":24,"more":[1]}',
    ],
)
def test_a_size_is_read_as_any_client_writes_it(text: bytes) -> None:
    assert TerminalSizeReader().receive_data(text) == TerminalSize(80, 24)


def test_of_several_sizes_at_once_the_last_counts() -> None:
    text = b'{"Width":1,"Height":2}{"Width":3,"Height":4}{"Width":'
    reader = TerminalSizeReader()
    assert reader.receive_data(text) == TerminalSize(3, 4)
    assert reader.receive_data(b'5,"Height":6}') == TerminalSize(5, 6)


@given(st.lists(st.integers(0, 60), max_size=6))
def test_a_size_may_come_in_pieces(places: list[int]) -> None:
    reader = TerminalSizeReader()
    text = b'{"Width":1,"Height":2}\n{"Width":65535,"Height":0}\n'
    seen = [size for piece in cut(text, places) if (size := reader.receive_data(piece))]
    assert seen[-1] == TerminalSize(65535, 0)


@pytest.mark.parametrize(
    "text",
    [
        b"}",
        b"{}",
        b"[1}",
        b'{"Width":80}',
        b'{"Width":-1,"Height":24}',
        b'{"Width":65536,"Height":24}',
        b'{"Width":80.0,"Height":24}',
        b'{"Width":true,"Height":24}',
        b'{"Width":"80","Height":24}',
        b'{"Width":80,"Height":' + b"9" * 500 + b"}",
        b'"\xff"}',
        b"1}",
        b"[" * 900 + b"}",
        b'{"Width":80,' + b" " * MAX_OBJECT_BYTES + b'"Height":24}',
    ],
)
def test_what_is_no_size_is_passed_over_and_the_next_counts(text: bytes) -> None:
    reader = TerminalSizeReader()
    assert reader.receive_data(text) is None
    assert reader.receive_data(b'{"Width":80,"Height":24}') == TerminalSize(80, 24)


def test_what_never_ends_is_not_kept() -> None:
    reader = TerminalSizeReader()
    for _ in range(100):
        assert reader.receive_data(b"{" * 10_000) is None
    assert reader.pending_bytes <= MAX_OBJECT_BYTES
