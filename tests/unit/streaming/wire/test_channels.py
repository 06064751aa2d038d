"""Channels in WebSocket messages: raw, base64, and the close signal."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.streaming.wire.channels import (
    ChannelConnection,
    ChannelData,
    ChannelEnded,
    ConnectionEnded,
)
from cri_shim.streaming.wire.upgrade import V1, V1_BASE64, V4, V4_BASE64, V5
from cri_shim.streaming.wire.websocket import CloseCode, WebSocketConnection
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import (
    RandomKeys,
    byte_by_byte,
    deliver,
    in_pieces,
    merged,
    sent,
)

PROTOCOLS = [V1, V4, V5, V1_BASE64, V4_BASE64]


def client_of(protocol: str) -> ChannelConnection:
    return ChannelConnection(protocol, WebSocketConnection(mask_key=RandomKeys()))


def messages(*texts: bytes, text: bool = False) -> bytes:
    websocket = WebSocketConnection(mask_key=RandomKeys())
    for each in texts:
        websocket.send_message([each], text=text)
    return sent(websocket)


@given(
    st.sampled_from(PROTOCOLS),
    st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=300)), max_size=6),
    st.lists(st.integers(0, 2000), max_size=6),
)
def test_bytes_arrive_on_their_channels_in_order(
    protocol: str, script: list[tuple[int, bytes]], places: list[int]
) -> None:
    client, server = client_of(protocol), ChannelConnection(protocol)
    expected = merged([ChannelData(channel, data) for channel, data in script if data])
    for sender, receiver in ((client, server), (server, client)):
        for channel, data in script:
            sender.send(channel, data)
        assert in_pieces(receiver, sent(sender), places) == expected


def test_the_documented_examples_are_what_is_on_the_wire() -> None:
    raw, encoded = ChannelConnection(V4), ChannelConnection(V4_BASE64)
    raw.send(1, b"\n")
    encoded.send(1, b"\n")
    assert sent(raw) == b"\x82\x02\x01\n"
    assert sent(encoded) == b"\x81\x051Cg=="
    assert merged(encoded.receive_data(messages(b"0Zm9vCg==", text=True))) == [
        ChannelData(0, b"foo\n")
    ]


def test_an_empty_message_announces_a_channel_and_is_no_data() -> None:
    server, client = ChannelConnection(V5), client_of(V5)
    server.send(1, b"")
    wire = sent(server)
    assert wire == b"\x82\x01\x01"
    assert client.receive_data(wire) == []
    assert server.receive_data(messages(b"", b"\0", b"\0x")) == [ChannelData(0, b"x")]


def test_messages_count_whatever_their_kind() -> None:
    assert ChannelConnection(V4).receive_data(messages(b"\0hi", text=True)) == [
        ChannelData(0, b"hi")
    ]
    assert ChannelConnection(V1_BASE64).receive_data(messages(b"0aGk=")) == [ChannelData(0, b"hi")]


def test_the_close_signal_is_of_v5() -> None:
    client, server = client_of(V5), ChannelConnection(V5)
    client.end(0)
    wire = sent(client) + messages(b"\xff", b"\xff\x04more")
    assert byte_by_byte(server, wire) == [ChannelEnded(0), ChannelEnded(4)]
    assert ChannelConnection(V4).receive_data(messages(b"\xff\0")) == [ChannelData(255, b"\0")]


def test_an_exec_of_kubernetes_own_client_is_understood() -> None:
    events = byte_by_byte(ChannelConnection(V5), recorded.EXEC_WEBSOCKET_V5)
    assert events == [ChannelData(0, b"hi\n"), ChannelEnded(0)]


@pytest.mark.parametrize("places", [[], [9], range(60)])
def test_line_ends_within_base64_are_passed_over(places: list[int]) -> None:
    text = b"0" + base64.encodebytes(bytes(70)).replace(b"\n", b"\r\n")
    events = in_pieces(ChannelConnection(V4_BASE64), messages(text, b"0"), places)
    assert events == [ChannelData(0, bytes(70))]


@pytest.mark.parametrize("text", [b"0!!!!", b"0Zg", b"0Zg==Zg==", b"0Z===", b"0=Zg=", b"0Zm9v\0"])
def test_what_is_not_base64_closes_the_connection(text: bytes) -> None:
    everywhere = list(range(40))
    for places in (everywhere, everywhere[:0]):
        server = ChannelConnection(V4_BASE64)
        events = in_pieces(server, messages(text), places)
        assert isinstance(events[-1], ConnectionEnded)
        assert "base64" in str(events[-1].error)
        said = sent(server)
        assert said[2:4] == CloseCode.INVALID_DATA.to_bytes(2, "big")
        assert server.receive_data(messages(b"0Zg==")) == server.receive_eof() == []


def test_a_client_that_closes_or_hangs_up_ends_the_connection_in_order() -> None:
    for code in (CloseCode.NORMAL, CloseCode.GOING_AWAY):
        client, server = client_of(V4), ChannelConnection(V4)
        client.close(code)
        assert deliver(client, server) == [ConnectionEnded(None)]
        assert server.receive_eof() == []
    assert ChannelConnection(V4).receive_eof() == [ConnectionEnded(None)]


def test_a_client_that_closes_in_anger_says_why() -> None:
    client, server = client_of(V4), ChannelConnection(V4)
    client.close(CloseCode.POLICY_VIOLATION, "no\n")
    assert deliver(client, server) == [
        ConnectionEnded("the client closed the connection with code 1008 'no\\n'"),
    ]


def test_a_broken_frame_ends_the_connection_with_the_reason() -> None:
    [event] = ChannelConnection(V4).receive_data(b"\x82\x01x")
    assert event == ConnectionEnded("clients must mask their frames, servers must not")


def test_pings_keep_the_connection() -> None:
    client, server = client_of(V4), ChannelConnection(V4)
    server.ping()
    assert deliver(server, client) == []
    assert deliver(client, server) == []
    assert not server.is_closing
