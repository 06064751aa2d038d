"""Port-forward: whatever a client sends while targets answer, end, fail and reset."""

from __future__ import annotations

from cri_shim.streaming.wire.portforward import (
    Closed,
    ConnectionData,
    ConnectionEnd,
    ConnectionOpened,
    ConnectionReset,
    ConnectionWritable,
    PairBegun,
    PortForward,
    PortForwardEvent,
)
from cri_shim.streaming.wire.portforward_channels import ChannelPortForward
from cri_shim.streaming.wire.portforward_spdy import MAX_EARLY_BYTES, SpdyPortForward
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import SessionEnded
from cri_shim.streaming.wire.tunnel import TunnelledSpdyConnection
from cri_shim.streaming.wire.upgrade import V4, V4_BASE64
from tests.fuzz import assert_sound
from tests.fuzz.targets.stream_spdy import WORDS as SPDY_WORDS
from tests.fuzz.targets.stream_spdy import Peer
from tests.fuzz.targets.stream_websocket import SEEDS as WEBSOCKET_SEEDS
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import heard as all_heard
from tests.unit.streaming.wire.roleplay import sent


def _pair(peer: Peer, stream_id: int, request: str, port: str = "80") -> Peer:
    peer.syn(stream_id, streamtype="error", port=port, requestid=request)
    return peer.syn(stream_id + 2, streamtype="data", port=port, requestid=request)


SEEDS = [
    *(b"\x20" + seed for seed in WEBSOCKET_SEEDS),
    b"\x07" + recorded.PORT_FORWARD_SPDY,
    b"\x0b" + recorded.PORT_FORWARD_TUNNEL,
    b"\xff" + _pair(_pair(Peer(), 1, "a"), 5, "b", "81").data(3, b"ask").reset(7).wire,
    b"\x1f" + _pair(Peer(), 1, "a").data(3, b"ask", fin=True).reset(1).wire,
    b"\x2a"
    + Peer()
    .syn(1, streamtype="data", port="80", requestid="a")
    .data(1, b"early", fin=True)
    .syn(3, streamtype="error", port="81", requestid="a")
    .wire,
    b"\x33" + Peer().syn(1, streamtype="error", port="1").syn(3, streamtype="data", port="1").wire,
]
"""The first byte says how big the pieces are, and what targets do."""
WORDS = [*SPDY_WORDS, b"error", b"port", b"requestid", b"65536", b"\0\0\0\2", b"\x01\0\0\0"]
_PORTS = (80, 443)


def fuzz(data: bytes) -> None:
    choice = (data or b"\1")[0]
    sessions = SpdyConnection(max_streams=8), TunnelledSpdyConnection(max_streams=8)
    for machine in (
        *(SpdyPortForward(sessions[0]), SpdyPortForward(sessions[1])),
        *(ChannelPortForward(V4, _PORTS), ChannelPortForward(V4_BASE64, _PORTS)),
    ):
        heard = _run(machine, data[1:], choice)
        if isinstance(machine, SpdyPortForward):
            assert machine._early_bytes <= MAX_EARLY_BYTES
            assert len(machine._pairs) <= len(machine._by_stream) <= 8
        if machine is not None and heard[:1] == b"\x80" and heard[1:2] == b"\x03":
            answered = all_heard(SpdyConnection(client=True), heard)
            assert not any(isinstance(event, SessionEnded) for event in answered)


def _run(machine: PortForward, data: bytes, choice: int) -> bytes:
    size = 1 + choice % 64
    open_ids: set[int] = set()
    closed = _serve(machine, machine.start(), open_ids, choice)
    heard = sent(machine)
    for start in range(0, len(data), size):
        events = all_heard(machine, data[start : start + size])
        assert not (closed and events), "something behind the end"
        closed = _serve(machine, events, open_ids, choice + start) or closed
        heard += sent(machine)
    _serve(machine, machine.receive_eof(), open_ids, choice)
    machine.close()
    assert machine.open_connections == 0
    return heard


def _serve(
    machine: PortForward, events: list[PortForwardEvent], open_ids: set[int], choice: int
) -> bool:
    for event in events:
        match event:
            case PairBegun(request_id):
                if choice % 5 == 0:
                    machine.expire(request_id)
            case ConnectionOpened(connection_id, port):
                assert 0 < port < 65536
                assert connection_id not in open_ids
                open_ids.add(connection_id)
                if choice % 7 == 0:
                    machine.fail(connection_id, "refused")
            case ConnectionData(connection_id, data):
                assert connection_id in open_ids
                assert len(data)
                machine.consumed(connection_id, len(data))
                assert machine.send(connection_id, b"echo") <= 4
                if choice % 3 == 0:
                    machine.reset(connection_id)
            case ConnectionEnd(connection_id):
                assert connection_id in open_ids
                (machine.end if choice % 2 else machine.complete)(connection_id)
            case ConnectionReset(connection_id):
                open_ids.remove(connection_id)
            case ConnectionWritable(connection_id):
                machine.send(connection_id, b"more")
            case Closed(error):
                assert event is events[-1]
                if error is not None:
                    assert_sound(Exception(error))
                return True
    return False
