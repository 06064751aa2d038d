"""SPDY's frames and header blocks by themselves."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.streaming.wire import spdy_frames as frames
from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.spdy_frames import FrameType, HeaderCodec, parse_headers

NAMES = st.text("abcdefghij-", min_size=1, max_size=12)


def deflated(data: bytes) -> bytes:
    """A block as a peer with other settings makes it."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, frames.DICTIONARY)
    return deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)


def test_the_dictionary_is_that_of_the_draft() -> None:
    """zlib names a dictionary by its checksum, and this is the one that every SPDY/3 peer sends."""
    assert len(frames.DICTIONARY) == 1423
    assert zlib.adler32(frames.DICTIONARY) == 0xE3C6A7C2


@given(st.lists(st.dictionaries(NAMES, st.text(max_size=30), max_size=8), max_size=5))
def test_headers_come_back_as_they_were_through_one_compression(
    blocks: list[dict[str, str]],
) -> None:
    here, there = HeaderCodec(), HeaderCodec()
    for headers in blocks:
        assert parse_headers(there.inflate(here.compress(headers))) == headers


def test_an_empty_block_has_its_count() -> None:
    assert HeaderCodec().inflate(HeaderCodec().compress({})) == bytes(4)


def test_a_block_that_inflates_beyond_its_bound_is_refused_without_being_inflated() -> None:
    bomb = deflated(bytes(32 << 20))
    with pytest.raises(ProtocolError, match="more than"):
        HeaderCodec().inflate(bomb)


@pytest.mark.parametrize(
    "block",
    [b"\x00", b"not zlib", zlib.compress(bytes(4)), deflated(bytes(4))[:6] + b"\x07"],
    ids=["short", "text", "another dictionary", "no such block"],
)
def test_a_block_that_cannot_be_inflated_is_refused(block: bytes) -> None:
    codec = HeaderCodec()
    with pytest.raises(ProtocolError, match="header block"):
        parse_headers(codec.inflate(block))


def test_a_block_that_ends_the_compression_is_refused() -> None:
    deflate = zlib.compressobj(zdict=frames.DICTIONARY)
    with pytest.raises(ProtocolError, match="has ended"):
        HeaderCodec().inflate(deflate.compress(bytes(4)) + deflate.flush())


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\0\0",
        b"\0\0\0\1",
        b"\0\0\0\1\0\0\0\1a",
        b"\0\0\0\1\0\0\0\1a\xff\xff\xff\xffb",
        b"\0\0\0\1\0\0\0\0\0\0\0\1b",
        b"\0\0\0\1\0\0\0\1A\0\0\0\1b",
        b"\0\0\0\2\0\0\0\1a\0\0\0\1b\0\0\0\1a\0\0\0\1b",
        b"\0\0\0\0x",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x41" + b"".join(b"\0\0\0\2%02d\0\0\0\0" % i for i in range(65)),
    ],
)
def test_an_inflated_block_that_is_malformed_is_refused(block: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_headers(block)


@given(st.binary(max_size=100))
def test_any_inflated_bytes_are_headers_or_refused(block: bytes) -> None:
    try:
        headers = parse_headers(block)
    except ProtocolError:
        return
    assert len(headers) <= frames.MAX_HEADERS


def test_frames_are_laid_out_as_the_draft_draws_them() -> None:
    assert frames.control_frame(FrameType.PING, b"\0\0\0\1") == bytes.fromhex(
        "8003 0006 00000004 00000001"
    )
    assert frames.control_frame(FrameType.SYN_REPLY, b"ab", frames.FLAG_FIN) == bytes.fromhex(
        "8003 0002 01 000002 6162"
    )
    assert frames.data_header(5, 0x10203, fin=True) == bytes.fromhex("00000005 01 010203")
    assert frames.data_header(5, 1, fin=False) == bytes.fromhex("00000005 00 000001")


def test_settings_are_read_without_their_flags() -> None:
    entries = frames.settings(bytes.fromhex("00000002 01000007 00010000 00000004 00000064"))
    assert entries == [(frames.SETTINGS_INITIAL_WINDOW_SIZE, 0x10000), (4, 100)]


@pytest.mark.parametrize(
    "payload", [b"", b"\0\0\0\1", b"\0\0\0\0\0", b"\0\0\0\x7f" + bytes(127 * 8)]
)
def test_settings_of_another_length_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="SETTINGS"):
        frames.settings(payload)


def test_two_words_are_two_words() -> None:
    assert frames.two_words("GOAWAY", bytes.fromhex("80000005 00000001")) == (5, 1)
    with pytest.raises(ProtocolError, match="GOAWAY"):
        frames.two_words("GOAWAY", bytes(7))
