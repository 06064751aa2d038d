"""WebSocket frames and the channels in them: the same however they are cut, and nothing kept."""

from __future__ import annotations

from cri_shim.streaming.wire.channels import (
    ChannelConnection,
    ChannelData,
    ChannelEvent,
    ConnectionEnded,
)
from cri_shim.streaming.wire.upgrade import V4_BASE64, V5
from cri_shim.streaming.wire.websocket import (
    MAX_CONTROL_BYTES,
    MAX_HEADER_BYTES,
    CloseCode,
    WebSocketClosed,
    WebSocketConnection,
)
from tests.fuzz import assert_sound
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import RandomKeys, merged, sent, whole_messages
from tests.unit.streaming.wire.roleplay import heard as all_heard


def _messages(*payloads: bytes, text: bool = False) -> bytes:
    # a key of zeros leaves the payload readable, for whoever changes it
    websocket = WebSocketConnection(mask_key=lambda: bytes(4))
    for payload in payloads:
        websocket.send_message([payload], text=text)
    websocket.ping(b"p")
    websocket.close(CloseCode.NORMAL, "bye")
    return sent(websocket)


SEEDS = [
    recorded.EXEC_WEBSOCKET_V5,
    _messages(b"\0in", b'\4{"Width":80,"Height":24}', b"\xff\0", b""),
    _messages(b"0aGk=", b"4eyJXaWR0aCI6MSwiSGVpZ2h0IjoyfQ==\r\n", text=True),
    _messages(b"\0" * 200),
    b"\x02\x81\0\0\0\0a\x89\x80\0\0\0\0\x80\x81\0\0\0\0b",
    b"\x01\x81\0\0\0\0\xc3\x80\x81\0\0\0\0\xa4",
    b"\x88\x84\0\0\0\0\x03\xe8ok",
]
WORDS = [
    *(b"\x82\x80\0\0\0\0", b"\x82\xfe\0\x80\0\0\0\0", b"\x82\xff" + bytes(7) + b"\x05\0\0\0\0"),
    *(b"\x81\x84\0\0\0\0", b"\x80\x80\0\0\0\0", b"\x88\x82\0\0\0\0\x03\xe9", b"\x8a\x80\0\0\0\0"),
]


def fuzz(data: bytes) -> None:
    size = 1 + len(data) % 7
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    ends = WebSocketConnection(), WebSocketConnection()
    whole = merged(all_heard(ends[0], data))
    parts = merged([e for piece in pieces for e in all_heard(ends[1], piece)])
    assert whole_messages(parts) == whole_messages(whole)
    heard = sent(ends[0])
    assert sent(ends[1]) == heard
    assert len(ends[0]._held) <= MAX_HEADER_BYTES + MAX_CONTROL_BYTES
    client = WebSocketConnection(mask_key=RandomKeys())
    for answer in all_heard(client, heard):
        assert not (isinstance(answer, WebSocketClosed) and answer.error), (
            "we don't speak WebSocket"
        )
    for protocol in (V5, V4_BASE64):
        _compare_channels(protocol, data, pieces)


def _compare_channels(protocol: str, data: bytes, pieces: list[bytes]) -> None:
    ends = ChannelConnection(protocol), ChannelConnection(protocol)
    whole = merged(all_heard(ends[0], data))
    parts = merged([e for piece in pieces for e in all_heard(ends[1], piece)])
    error = next((e.error for e in whole if isinstance(e, ConnectionEnded)), None)
    if error is None:
        assert parts == whole
        assert sent(ends[1]) == sent(ends[0])
        return
    assert_sound(Exception(error))
    # text can be wrong in two ways: as UTF-8, which is seen first if all has come, and as base64
    assert isinstance(parts[-1], ConnectionEnded)
    assert parts[-1].error
    # of the message that was wrong, as much was given out as had come
    assert _bytes(parts).startswith(_bytes(whole))


def _bytes(events: list[ChannelEvent]) -> bytes:
    return b"".join(bytes((e.channel,)) + e.data for e in events if isinstance(e, ChannelData))
