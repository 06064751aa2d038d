"""Heads of streaming requests, and what they are upgraded to."""

from __future__ import annotations

from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.http1 import MAX_HEAD_BYTES, Request, RequestReader, error_answer
from cri_shim.streaming.wire.upgrade import negotiate_port_forward, negotiate_remote_command
from tests.fuzz import assert_sound

SEEDS = [
    b"POST /exec/t HTTP/1.1\r\nHost: n\r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: channel.k8s.io\r\n\r\n\x80\x03",
    b"GET /exec/t?a=1 HTTP/1.1\r\nHost: n\r\nConnection: keep-alive, upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: v5.channel.k8s.io, SPDY/3.1+portforward.k8s.io\r\n\r\n\x81\x80",
    b"GET http://n/x HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]
WORDS = [
    *(b"\r\n", b"\r\n\r\n", b": ", b"?", b"&", b"%00", b"\xff", b",", b"HTTP/1.1", b"GET ", b"//"),
    *(b"Content-Length: 5\r\n", b"Host: a\r\n", b"Upgrade: SPDY/3.1\r\n", b"channel.k8s.io"),
    *(b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Version: ", b"X-Stream-Protocol-Version: "),
]


def fuzz(data: bytes) -> None:
    whole = _read([data])
    assert _read([data[i : i + 1] for i in range(len(data))]) == whole, "cut, it is another request"
    if whole is None:
        return
    for negotiate in (negotiate_remote_command, negotiate_port_forward):
        try:
            upgrade = negotiate(whole)
        except ProtocolError as error:
            _assert_answer(error)
            continue
        assert upgrade.response.startswith(b"HTTP/1.1 101 ")
        assert upgrade.response.endswith(b"\r\n\r\n")
        assert upgrade.response.count(b"\r\n\r\n") == 1
    try:
        whole.parsed_query()
    except ProtocolError as error:
        _assert_answer(error)


def _read(pieces: list[bytes]) -> Request | None:
    reader = RequestReader()
    for piece in pieces:
        try:
            request = reader.receive_data(piece)
        except ProtocolError as error:
            _assert_answer(error)
            return None
        if request is not None:
            assert len(request.target) <= MAX_HEAD_BYTES
            assert request.path.startswith("/")
            return request
    return None


def _assert_answer(error: ProtocolError) -> None:
    assert_sound(error)
    head, _, body = error_answer(error).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % error.http_status)
    assert b"Content-Length: %d\r\n" % len(body) in head
