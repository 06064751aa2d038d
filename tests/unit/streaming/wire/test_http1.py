"""Request heads: how they are read, bounded and refused, and the answers."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.http1 import (
    MAX_ERROR_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEAD_LINES,
    Request,
    RequestReader,
    error_answer,
    error_response,
    switching_protocols,
)
from tests.unit.streaming.wire.roleplay import cut

HEAD = (
    b"POST /exec/token?a=1&a=2&b= HTTP/1.1\r\nHost: node:10350\r\nContent-Length: 0\r\n"
    b"Connection: keep-alive, Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.x, v2.x\r\n\r\n"
)


def read(data: bytes) -> tuple[RequestReader, Request | None]:
    reader = RequestReader()
    return reader, reader.receive_data(data)


def refusal(data: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        read(data)
    return caught.value


@given(st.lists(st.integers(0, 400), max_size=6))
def test_a_head_is_read_however_it_is_cut_and_what_follows_is_left(places: list[int]) -> None:
    reader = RequestReader()
    tail = b"\x80\x03what follows"
    request, behind = None, b""
    for piece in cut(HEAD + tail, places):
        if request is None:
            request = reader.receive_data(piece)
        else:
            behind += piece
    assert request is not None
    assert (request.method, request.path) == ("POST", "/exec/token")
    assert request.parsed_query() == {"a": ["1", "2"], "b": [""]}
    assert request.list_named("x-stream-protocol-version") == ["v4.channel.k8s.io", "v3.x", "v2.x"]
    assert request.headers_named("upgrade") == ["SPDY/3.1"]
    assert request.has_token("connection", "upgrade")
    assert bytes(reader.leftover) + behind == tail


def test_an_absolute_target_is_its_path() -> None:
    _, request = read(b"GET http://node:10350/attach/t?x=1 HTTP/1.1\r\nHost: node\r\n\r\n")
    assert request is not None
    assert (request.path, request.query) == ("/attach/t", "x=1")


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GET x HTTP/1.1\r\nHost: n\r\n\r\n", 400, "must be a path"),
        (b"GET ftp://n/x HTTP/1.1\r\nHost: n\r\n\r\n", 400, "must be a path"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2.0"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "bad request"),
        (b"GET /x HTTP/1.1\r\n\r\n", 400, "Host"),
        (
            b"POST /x HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\nabc",
            400,
            "must not have a body",
        ),
        (
            b"POST /x HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "must not have a body",
        ),
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: n\r\n\r\n", 431, "more than"),
        (b"GET / HTTP/1.1\r\n" + b"a:\r\n" * (MAX_HEAD_LINES + 1) + b"\r\n", 431, "lines"),
        (
            b"GET / HTTP/1.1\r\nHost: n\r\nX: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
            431,
            "more than",
        ),
    ],
)
def test_what_is_no_request_to_upgrade_is_refused(data: bytes, status: int, reason: str) -> None:
    error = refusal(data)
    assert reason in str(error)
    assert error.http_status == status


def test_a_head_that_never_ends_is_refused_at_its_bound() -> None:
    reader = RequestReader()
    reader.receive_data(b"GET /")
    for _ in range((MAX_HEAD_BYTES - 5) // 100):
        assert reader.receive_data(b"a" * 100) is None
    with pytest.raises(ProtocolError) as caught:
        reader.receive_data(b"a" * 100)
    assert caught.value.http_status == 431


def test_lines_behind_the_head_are_none_of_it() -> None:
    reader = RequestReader()
    assert reader.receive_data(b"GET / HTTP/1.1\r\nHost: n\r\n") is None
    assert reader.receive_data(b"\r\n" + b"\n" * 1000) is not None
    assert len(reader.leftover) == 1000


def test_a_head_that_just_fits_may_come_in_two() -> None:
    head = b"GET / HTTP/1.1\r\nHost: n\r\nX: "
    reader = RequestReader()
    assert reader.receive_data(head.ljust(MAX_HEAD_BYTES, b"x")) is None
    with pytest.raises(ProtocolError, match="more than"):
        reader.receive_data(b"\r\n\r\n")
    reader = RequestReader()
    whole = head.ljust(MAX_HEAD_BYTES - 4, b"x") + b"\r\n\r\n"
    assert reader.receive_data(whole[:100]) is None
    assert reader.receive_data(whole[100:]) is not None
    assert reader.leftover == b""


def test_a_query_of_too_many_fields_is_refused() -> None:
    _, request = read(b"GET /x?" + b"a&" * 1000 + b" HTTP/1.1\r\nHost: n\r\n\r\n")
    assert request is not None
    with pytest.raises(ProtocolError, match="query"):
        request.parsed_query()


def test_an_end_before_the_first_byte_is_no_error_and_within_a_head_is_one() -> None:
    reader = RequestReader()
    assert reader.receive_data(b"") is None
    reader.receive_eof()
    reader.receive_data(b"GET")
    with pytest.raises(ProtocolError, match="ended"):
        reader.receive_eof()


@settings(max_examples=200)
@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda b: HEAD[:80] + b + b"\r\n\r\n"))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    error = None
    try:
        read(data)
    except ProtocolError as e:
        error = e
    assert error is None or error_answer(error).startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))


def answered(data: bytes) -> tuple[h11.Response | h11.InformationalResponse, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "n"), ("Upgrade", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    assert isinstance(response, h11.Response | h11.InformationalResponse)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    return response, body


def test_an_error_is_a_whole_answer_with_its_text() -> None:
    error = ProtocolError("nö", http_status=403, headers=[("X-Accepted", "a"), ("X-Accepted", "b")])
    response, body = answered(error_answer(error))
    assert response.status_code == 403
    assert body == "nö\n".encode()
    assert [v for k, v in response.headers if k == b"x-accepted"] == [b"a", b"b"]
    assert (b"connection", b"close") in response.headers


def test_a_long_error_is_cut() -> None:
    _, body = answered(error_response(500, "x" * 10**6))
    assert len(body) == MAX_ERROR_BODY_BYTES + 1


def test_a_switch_names_the_protocol() -> None:
    response, _ = answered(switching_protocols("SPDY/3.1", [("X-Y", "z")]))
    assert response.status_code == 101
    assert {(b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1"), (b"x-y", b"z")} <= set(
        response.headers
    )
