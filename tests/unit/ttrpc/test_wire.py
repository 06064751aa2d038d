"""ttrpc's frames: any split of the bytes gives the same frames, and no bytes take more memory than one body."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.ttrpc.wire import (
    DATA,
    MAX_BODY_BYTES,
    REQUEST,
    RESPONSE,
    Decoder,
    Frame,
    MessageTooLongError,
    TooLong,
    encode,
)

FRAMES = st.builds(
    Frame,
    st.integers(0, 2**32 - 1),
    st.sampled_from([REQUEST, RESPONSE, DATA, 77]),
    st.integers(0, 255),
    st.binary(max_size=100),
)


def test_a_frame_is_a_head_of_ten_bytes_and_a_body() -> None:
    assert encode(Frame(5, REQUEST, 2, b"abc")) == bytes.fromhex("00000003 00000005 01 02") + b"abc"


@given(st.lists(FRAMES, max_size=8), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(
    frames: list[Frame], step: int
) -> None:
    data = b"".join(map(encode, frames))
    decoder = Decoder()
    found: list[Frame | TooLong] = []
    for at in range(0, len(data), step):
        found += decoder.receive_data(data[at : at + step])
    assert found == frames
    assert decoder.kept_bytes == 0


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_any_bytes_are_frames_or_wait_for_more(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        for frame in decoder.receive_data(piece):
            assert isinstance(frame, Frame | TooLong)
    assert decoder.kept_bytes <= sum(map(len, pieces))


def test_a_body_that_is_too_long_is_passed_over_and_not_kept() -> None:
    head = struct.pack(">IIBB", MAX_BODY_BYTES + 3, 9, REQUEST, 0)
    decoder = Decoder()
    assert decoder.receive_data(head + b"xx") == [TooLong(9, REQUEST, MAX_BODY_BYTES + 3)]
    for _ in range(4):
        assert decoder.receive_data(b"x" * (1 << 20)) == []
        assert decoder.kept_bytes == 0
    after = Frame(11, REQUEST, 0, b"after")
    assert decoder.receive_data(b"x" + encode(after)) == [after]


def test_a_message_that_is_too_long_is_not_sent() -> None:
    assert len(encode(Frame(1, REQUEST, 0, bytes(MAX_BODY_BYTES)))) == MAX_BODY_BYTES + 10
    with pytest.raises(MessageTooLongError, match="4194305 bytes"):
        encode(Frame(1, REQUEST, 0, bytes(MAX_BODY_BYTES + 1)))
