"""SPDY's frames: the same however they are cut, nothing kept, and what we answer is SPDY."""

from __future__ import annotations

import zlib

from cri_shim.streaming.wire import spdy_frames as frames
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    SessionEnded,
    SpdyEvent,
    StreamOpened,
    StreamWritable,
)
from cri_shim.streaming.wire.tunnel import TunnelledSpdyConnection
from tests.fuzz import assert_sound
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import heard as all_heard
from tests.unit.streaming.wire.roleplay import merged, sent

MAX_STREAMS = 8


class Peer:
    """Writes frames whose header blocks are stored as they are, so that changing a byte of one changes a header."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(0, zdict=frames.DICTIONARY)
        self.wire = b""

    def syn(self, stream_id: int, flags: int = 0, **headers: str) -> Peer:
        payload = frames.WORDS.pack(stream_id, 0) + b"\0\0" + self._block(headers)
        return self.control(frames.FrameType.SYN_STREAM, payload, flags)

    def headers(self, stream_id: int, **headers: str) -> Peer:
        payload = frames.WORD.pack(stream_id) + self._block(headers)
        return self.control(frames.FrameType.HEADERS, payload)

    def control(self, type_: int, payload: bytes, flags: int = 0) -> Peer:
        self.wire += frames.WORDS.pack(0x80030000 | type_, flags << 24 | len(payload)) + payload
        return self

    def data(self, stream_id: int, payload: bytes, *, fin: bool = False) -> Peer:
        self.wire += frames.data_header(stream_id, len(payload), fin=fin) + payload
        return self

    def reset(self, stream_id: int) -> Peer:
        return self.control(frames.FrameType.RST_STREAM, frames.WORDS.pack(stream_id, 5))

    def window(self, stream_id: int, delta: int) -> Peer:
        return self.control(frames.FrameType.WINDOW_UPDATE, frames.WORDS.pack(stream_id, delta))

    def _block(self, headers: dict[str, str]) -> bytes:
        parts = [frames.WORD.pack(len(headers))]
        for text in (text for pair in headers.items() for text in pair):
            parts += (frames.WORD.pack(len(text)), text.encode())
        return self._deflate.compress(b"".join(parts)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


SEEDS = [
    recorded.EXEC_SPDY,
    recorded.PORT_FORWARD_SPDY,
    Peer().syn(1, streamtype="data").syn(3, 1, streamtype="error").data(1, b"x", fin=True).wire,
    Peer().syn(1).syn(1).syn(5).syn(3).data(5, b"abc").reset(5).data(5, b"late").wire,
    Peer().syn(1).control(4, b"\0\0\0\1\0\0\0\7\0\0\0\2").window(1, 5).window(0, 9).wire,
    Peer().syn(1).headers(1, a="b").control(6, b"\0\0\0\1").control(7, bytes(8)).wire,
    Peer().control(77, b"unknown").syn(1, 2).syn(0).wire,
    b"\x80\x02\0\1\0\0\0\0",
]
WORDS = [
    *(b"\x80\x03\0\1", b"\x80\x03\0\3", b"\x80\x03\0\6", b"\x80\x03\0\x08", b"\x80\x03\0\x09"),
    *(b"\0\0\0\1", b"\0\0\0\3", b"\0\0\0\0", b"\1\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"),
    Peer().syn(7, streamtype="data").wire,
]


def fuzz(data: bytes) -> None:
    whole, heard, server = _take([data])
    size = 1 + len(data) % 7
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    cut, heard_cut, _ = _take(pieces)
    # when a window lets a send go on is said once a chunk, so it may come at another place
    assert _settled(cut) == _settled(whole)
    assert heard_cut == heard
    assert server.open_streams <= MAX_STREAMS
    assert len(server._held) <= frames.FRAME_HEADER_BYTES + frames.MAX_CONTROL_BYTES
    for event in whole[:-1]:
        assert not isinstance(event, SessionEnded)
    if whole and isinstance(whole[-1], SessionEnded) and whole[-1].error is not None:
        assert_sound(Exception(whole[-1].error))
    answered = all_heard(SpdyConnection(client=True), heard)
    assert not any(isinstance(event, SessionEnded) for event in answered), "we don't speak SPDY"
    all_heard(TunnelledSpdyConnection(), data)


def _take(pieces: list[bytes]) -> tuple[list[SpdyEvent], bytes, SpdyConnection]:
    server = SpdyConnection(max_streams=MAX_STREAMS)
    events: list[SpdyEvent] = []
    for piece in pieces:
        events += all_heard(server, piece)
    events = merged(events)
    for event in events:
        if isinstance(event, StreamOpened):
            server.accept(event.stream_id)
        elif isinstance(event, DataReceived):
            server.consumed(event.stream_id, len(event.data))
            server.end(event.stream_id)
    return events, sent(server), server


def _settled(events: list[SpdyEvent]) -> list[SpdyEvent]:
    return [event for event in events if not isinstance(event, StreamWritable)]
