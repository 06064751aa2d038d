"""SPDY in WebSocket messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    GoAwayReceived,
    PongReceived,
    SessionEnded,
    StreamEnded,
    StreamOpened,
    StreamReplied,
)
from cri_shim.streaming.wire.tunnel import TunnelledSpdyConnection
from cri_shim.streaming.wire.turn import COST_PER_TURN
from cri_shim.streaming.wire.websocket import CloseCode, WebSocketClosed, WebSocketConnection
from cri_shim.streaming.wire.websocket import PongReceived as WebSocketPong
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import RandomKeys, deliver, in_pieces, sent


def pair() -> tuple[TunnelledSpdyConnection, TunnelledSpdyConnection]:
    return TunnelledSpdyConnection(mask_key=RandomKeys()), TunnelledSpdyConnection()


def test_a_session_goes_through_both_ways() -> None:
    client, server = pair()
    stream_id = client.open_stream({"streamtype": "data"})
    assert deliver(client, server) == [StreamOpened(1, {"streamtype": "data"})]
    server.accept(stream_id)
    server.send_data(stream_id, b"x" * 100_000, fin=True)
    wire = sent(server)
    assert wire[:2] == b"\x82\x7f"  # one binary message for all that is to be said
    assert in_pieces(client, wire, [5, 70_000]) == [
        StreamReplied(1, {}),
        DataReceived(1, b"x" * 100_000),
        StreamEnded(1),
    ]


@given(st.lists(st.integers(0, 1000), max_size=10))
def test_a_tunnelled_session_means_what_the_plain_one_means(places: list[int]) -> None:
    """Recorded from the same client doing the same over both; it pings through the tunnel only."""
    plain = in_pieces(SpdyConnection(), recorded.PORT_FORWARD_SPDY, [])
    tunnelled = in_pieces(TunnelledSpdyConnection(), recorded.PORT_FORWARD_TUNNEL, places)
    assert tunnelled == plain
    assert isinstance(plain[-1], GoAwayReceived)


def test_a_closed_session_closes_the_tunnel_behind_its_goaway() -> None:
    client, server = pair()
    server.close()
    assert deliver(server, client) == [GoAwayReceived(0, 0), SessionEnded(None)]
    assert sent(server) == b""


def test_a_broken_session_closes_the_tunnel_too() -> None:
    client, server = pair()
    websocket = WebSocketConnection(mask_key=RandomKeys())
    websocket.send_message([b"\x80\x02\0\1\0\0\0\0"])
    [event] = server.receive_data(sent(websocket))
    assert isinstance(event, SessionEnded)
    assert event.error
    assert deliver(server, client) == [GoAwayReceived(0, 1), SessionEnded(None)]


def test_pings_of_both_protocols_are_answered() -> None:
    client, server = pair()
    client.ping()
    websocket = WebSocketConnection(mask_key=RandomKeys())
    websocket.ping()
    assert server.receive_data(sent(websocket)) == []
    assert deliver(client, server) == []
    assert deliver(server, client) == [PongReceived(1)]
    unmasked = WebSocketConnection()
    unmasked.ping(b"?")
    assert client.receive_data(sent(unmasked)) == []
    assert unmasked.receive_data(sent(client)) == [WebSocketPong(b"?")]


def test_text_is_no_spdy() -> None:
    server = TunnelledSpdyConnection()
    websocket = WebSocketConnection(mask_key=RandomKeys())
    websocket.send_message([b"hello"], text=True)
    assert server.receive_data(sent(websocket)) == [SessionEnded("SPDY in a text message")]
    [closed] = websocket.receive_data(sent(server))
    assert isinstance(closed, WebSocketClosed)
    assert closed.code == CloseCode.UNSUPPORTED_DATA


def test_a_closed_tunnel_ends_the_session_and_so_does_its_end() -> None:
    for end in (lambda w: w.close(), lambda w: None):
        server = TunnelledSpdyConnection()
        websocket = WebSocketConnection(mask_key=RandomKeys())
        end(websocket)
        events = [*server.receive_data(sent(websocket)), *server.receive_eof()]
        assert events == [SessionEnded(None)]
        assert server.has_ended


def test_small_frames_are_looked_at_a_bounded_number_in_a_turn_and_a_close_is_behind_them_all() -> (
    None
):
    client, server = pair()
    stream_id = client.open_stream({})
    wire = sent(client)
    for _ in range(3000):
        client.send_data(stream_id, b"x")
        wire += sent(client)
    client.close()
    wire += sent(client)
    each = [server.receive_data(wire)]
    while server.has_more:
        each.append(server.receive_data(b""))
    assert max(map(len, each)) <= COST_PER_TURN
    events = [event for events in each for event in events]
    assert sum(isinstance(event, DataReceived) for event in events) == 3000
    assert events[-1] == SessionEnded(None)
    assert server.receive_data(b"more") == []
