"""SPDY connections: two of ours against each other, the draft's rules, and Kubernetes' own client."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri_shim.streaming.wire import spdy_frames as frames
from cri_shim.streaming.wire.errors import StreamClosedError
from cri_shim.streaming.wire.shares import Share, Shares
from cri_shim.streaming.wire.spdy import (
    INFLATED_BYTES_A_FRAME,
    MAX_DATA_BYTES,
    STREAM_COST,
    SpdyConnection,
)
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    GoAwayReceived,
    PongReceived,
    SessionEnded,
    SpdyEvent,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    StreamReset,
    StreamWritable,
)
from cri_shim.streaming.wire.spdy_flow import GRANT_BYTES, INITIAL_WINDOW
from cri_shim.streaming.wire.spdy_frames import FrameType, GoAway, HeaderCodec, Reset
from cri_shim.streaming.wire.turn import COST_PER_TURN
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import byte_by_byte, deliver, in_pieces, sent

if TYPE_CHECKING:
    from collections.abc import Mapping


def pair() -> tuple[SpdyConnection, SpdyConnection]:
    return SpdyConnection(client=True), SpdyConnection()


def opened(
    headers: Mapping[str, str] | None = None,
) -> tuple[SpdyConnection, SpdyConnection, int]:
    """Both ends of a session with one stream."""
    client, server = pair()
    stream_id = client.open_stream(headers or {})
    deliver(client, server)
    server.accept(stream_id)
    deliver(server, client)
    return client, server, stream_id


def control(type_: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.WORDS.pack(0x80030000 | type_, flags << 24 | len(payload)) + payload


def syn(stream_id: int, codec: HeaderCodec, flags: int = 0, **headers: str) -> bytes:
    payload = frames.WORDS.pack(stream_id, 0) + b"\0\0" + codec.compress(headers)
    return control(FrameType.SYN_STREAM, payload, flags)


def data(stream_id: int, payload: bytes, *, fin: bool = False) -> bytes:
    return frames.data_header(stream_id, len(payload), fin=fin) + payload


def words(*numbers: int) -> bytes:
    return b"".join(frames.WORD.pack(number) for number in numbers)


def reset(stream_id: int, status: int) -> bytes:
    return control(FrameType.RST_STREAM, words(stream_id, status))


def test_a_stream_is_opened_accepted_used_both_ways_and_forgotten() -> None:
    client, server = pair()
    stream_id = client.open_stream({"streamtype": "data", "port": "80"})
    assert deliver(client, server) == [StreamOpened(1, {"streamtype": "data", "port": "80"})]
    server.accept(stream_id)
    assert deliver(server, client) == [StreamReplied(1, {})]
    assert client.send_data(1, b"ask") == 3
    assert client.send_data(1, b"", fin=True) == 0
    assert deliver(client, server) == [DataReceived(1, b"ask"), StreamEnded(1)]
    assert server.open_streams == client.open_streams == 1
    assert server.send_data(1, b"answer", fin=True) == 6
    assert server.open_streams == 0
    assert deliver(server, client) == [DataReceived(1, b"answer"), StreamEnded(1)]
    assert client.open_streams == 0


def test_the_server_opens_streams_of_even_ids() -> None:
    client, server = pair()
    assert [server.open_stream({}), server.open_stream({})] == [2, 4]
    assert deliver(server, client) == [StreamOpened(2, {}), StreamOpened(4, {})]


def test_a_stream_can_be_opened_with_our_half_closed() -> None:
    client, server = pair()
    stream_id = client.open_stream({}, fin=True)
    assert deliver(client, server) == [StreamOpened(1, {}), StreamEnded(1)]
    with pytest.raises(StreamClosedError):
        client.send_data(stream_id, b"x")
    server.accept(stream_id)
    server.end(stream_id)
    assert deliver(server, client) == [StreamReplied(1, {}), StreamEnded(1)]
    assert client.open_streams == server.open_streams == 0


def test_a_reply_may_end_the_stream_and_so_may_headers() -> None:
    client, _ = pair()
    codec = HeaderCodec()
    client.open_stream({})
    client.open_stream({})
    answer = control(FrameType.SYN_REPLY, words(1) + codec.compress({"a": "b"}), frames.FLAG_FIN)
    answer += control(FrameType.HEADERS, words(3) + codec.compress({"a": "b"}), frames.FLAG_FIN)
    assert client.receive_data(answer) == [
        StreamReplied(1, {"a": "b"}),
        StreamEnded(1),
        StreamEnded(3),
    ]


def test_data_is_a_view_of_what_was_received_and_is_sent_without_a_copy() -> None:
    client, server, stream_id = opened()
    payload = bytes(100_000)
    client.send_data(stream_id, payload)
    header, body = client.data_to_send()
    assert body is payload
    [event] = server.receive_data(b"".join((header, body)))
    assert isinstance(event, DataReceived)
    assert isinstance(event.data, memoryview)


def test_what_is_long_is_sent_in_frames_that_a_peer_can_allocate() -> None:
    client, server, stream_id = opened()
    payload = bytes(range(256)) * (5 * MAX_DATA_BYTES // 512)
    assert client.send_data(stream_id, memoryview(payload), fin=True) == len(payload)
    buffers = client.data_to_send()
    assert max(len(buffer) for buffer in buffers) == MAX_DATA_BYTES
    received = server.receive_data(b"".join(buffers))
    assert isinstance(received[-1], StreamEnded)
    assert b"".join(bytes(e.data) for e in received if isinstance(e, DataReceived)) == payload


def test_sending_on_a_stream_that_is_over_is_an_error_and_ending_it_is_not() -> None:
    client, server, stream_id = opened()
    client.reset(stream_id)
    client.reset(stream_id)
    client.end(stream_id)
    assert deliver(client, server) == [StreamReset(1, Reset.CANCEL)]
    for end in (client, server):
        with pytest.raises(StreamClosedError):
            end.send_data(stream_id, b"x")
    server.accept(stream_id)
    assert sent(server) == b""


def test_pings_are_echoed_to_who_sent_them() -> None:
    client, server = pair()
    assert [client.ping(), client.ping(), server.ping()] == [1, 3, 2]
    deliver(client, server)
    assert deliver(server, client) == [PongReceived(1), PongReceived(3)]
    assert deliver(client, server) == [PongReceived(2)]


def test_a_session_that_goes_away_takes_no_more_streams_and_ends_those_it_has() -> None:
    client, server, stream_id = opened()
    server.go_away()
    server.go_away(GoAway.INTERNAL_ERROR)
    assert deliver(server, client) == [GoAwayReceived(1, GoAway.OK)]
    client.open_stream({})
    client.send_data(3, b"lost")
    client.send_data(stream_id, b"kept")
    assert deliver(client, server) == [DataReceived(1, b"kept")]
    assert sent(server) == b""
    with pytest.raises(StreamClosedError):
        server.open_stream({})


def test_a_closed_session_says_so_behind_all_it_sent_and_hears_nothing_more() -> None:
    client, server, stream_id = opened()
    server.send_data(stream_id, b"last")
    server.close()
    server.close()
    assert deliver(server, client) == [DataReceived(1, b"last"), GoAwayReceived(1, GoAway.OK)]
    client.send_data(stream_id, b"late")
    assert deliver(client, server) == []
    assert server.receive_eof() == server.end_session("late") == []
    assert server.has_ended


def test_an_end_between_frames_is_in_order_and_within_one_is_not() -> None:
    assert SpdyConnection().receive_eof() == [SessionEnded(None)]
    for cut_off in (b"\x80\x03", control(FrameType.PING, b"\0\0"), data(1, b"abc")[:9]):
        server = SpdyConnection()
        server.receive_data(cut_off[:-1])
        [event] = server.receive_eof()
        assert event == SessionEnded("the connection ended within a frame")
        assert server.receive_eof() == []
        assert server.receive_data(b"x") == []


# --- what peers do wrong


def test_a_second_stream_of_one_id_resets_it() -> None:
    server, codec = SpdyConnection(), HeaderCodec()
    assert server.receive_data(syn(1, codec) + syn(1, codec)) == [
        StreamOpened(1, {}),
        StreamReset(1, Reset.PROTOCOL_ERROR),
    ]
    assert sent(server) == reset(1, Reset.PROTOCOL_ERROR)


def test_an_id_that_does_not_rise_is_refused_alone() -> None:
    server, codec = SpdyConnection(), HeaderCodec()
    events = server.receive_data(syn(5, codec) + syn(3, codec) + syn(7, codec, a="b"))
    assert events == [StreamOpened(5, {}), StreamOpened(7, {"a": "b"})]
    assert sent(server) == reset(3, Reset.PROTOCOL_ERROR)


def test_streams_beyond_the_limit_are_refused_until_others_are_over() -> None:
    server, codec = SpdyConnection(max_streams=2), HeaderCodec()
    server.receive_data(b"".join(syn(stream_id, codec) for stream_id in (1, 3, 5)))
    assert sent(server) == reset(5, Reset.REFUSED_STREAM)
    server.reset(1)
    sent(server)
    assert server.receive_data(syn(7, codec)) == [StreamOpened(7, {})]


def test_a_unidirectional_stream_is_refused() -> None:
    server, codec = SpdyConnection(), HeaderCodec()
    assert server.receive_data(syn(1, codec, frames.FLAG_UNIDIRECTIONAL)) == []
    assert sent(server) == reset(1, Reset.REFUSED_STREAM)


def test_malformed_headers_concern_their_stream_only() -> None:
    server, codec = SpdyConnection(), HeaderCodec()
    events = server.receive_data(syn(1, codec, Upper="x") + syn(3, codec, lower="x"))
    assert events == [StreamOpened(3, {"lower": "x"})]
    assert sent(server) == reset(1, Reset.PROTOCOL_ERROR)
    late = control(FrameType.HEADERS, words(3) + codec.compress({"X": ""}))
    assert server.receive_data(late) == [StreamReset(3, Reset.PROTOCOL_ERROR)]


def test_data_for_a_stream_that_is_over_is_dropped_and_for_one_never_opened_is_refused() -> None:
    client, server, stream_id = opened()
    server.reset(stream_id)
    sent(server)
    assert server.receive_data(data(1, b"on its way") + data(7, b"what?")) == []
    assert sent(server) == reset(7, Reset.INVALID_STREAM)
    server.open_stream({})
    deliver(server, client)
    client.reset(2)
    assert client.receive_data(data(2, b"on its way") + data(4, b"what?")) == []
    assert sent(client).endswith(reset(4, Reset.INVALID_STREAM))


def test_data_behind_the_peers_own_end_resets_the_stream() -> None:
    client, server, _ = opened()
    sent(client)
    events = server.receive_data(data(1, b"a", fin=True) + data(1, b"b") + data(1, b"c"))
    assert events[1:] == [StreamEnded(1), StreamReset(1, Reset.STREAM_ALREADY_CLOSED)]
    assert sent(server) == reset(1, Reset.STREAM_ALREADY_CLOSED)
    codec = HeaderCodec()
    server = SpdyConnection()
    server.receive_data(syn(1, codec, frames.FLAG_FIN))
    late = control(FrameType.HEADERS, words(1) + codec.compress({}))
    assert server.receive_data(late) == [StreamReset(1, Reset.STREAM_ALREADY_CLOSED)]


def test_unknown_frames_are_passed_over_however_long() -> None:
    server = SpdyConnection()
    noise = control(5, b"") + control(10, bytes(1 << 20)) + control(0xFFFF, b"x", 0xFF)
    assert server.receive_data(noise + control(FrameType.PING, words(1))) == []
    assert sent(server) == control(FrameType.PING, words(1))


def test_frames_about_streams_nobody_knows_mean_nothing() -> None:
    server, codec = SpdyConnection(), HeaderCodec()
    noise = reset(9, Reset.CANCEL) + control(FrameType.WINDOW_UPDATE, words(9, 5))
    noise += control(FrameType.SYN_REPLY, words(9) + codec.compress({}))
    noise += control(FrameType.HEADERS, words(9) + codec.compress({}))
    noise += control(FrameType.SETTINGS, words(1, 4, 100))
    assert server.receive_data(noise + syn(1, codec, a="b")) == [StreamOpened(1, {"a": "b"})]
    assert sent(server) == b""


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\x80\x02\0\1\0\0\0\0", "version 2"),
        (control(FrameType.SYN_STREAM, bytes(9)), "SYN_STREAM"),
        (control(FrameType.SYN_STREAM, words(1, 0) + b"\0\0junk"), "header block"),
        (syn(2, HeaderCodec()), "not one that the peer may use"),
        (syn(0, HeaderCodec()), "not one that the peer may use"),
        (control(FrameType.SYN_REPLY, b"\0"), "SYN_REPLY"),
        (control(FrameType.HEADERS, b"\0"), "HEADERS"),
        (control(FrameType.RST_STREAM, b"\0"), "RST_STREAM"),
        (control(FrameType.SETTINGS, b"\0"), "SETTINGS"),
        (control(FrameType.PING, b"\0"), "PING"),
        (control(FrameType.GOAWAY, b"\0"), "GOAWAY"),
        (control(FrameType.WINDOW_UPDATE, b"\0"), "WINDOW_UPDATE"),
        (control(FrameType.WINDOW_UPDATE, words(0, 0x7FFFFFFF)), "exceeds 2^31 - 1"),
        (control(FrameType.SYN_STREAM, bytes(frames.MAX_CONTROL_BYTES + 1)), "control frame of"),
        (data(0, b"x"), "stream 0"),
    ],
)
def test_what_breaks_the_framing_ends_the_session_with_goaway(frame: bytes, reason: str) -> None:
    for receive in (lambda s: s.receive_data(frame), lambda s: byte_by_byte(s, frame)):
        server = SpdyConnection()
        events = receive(server)
        assert isinstance(events[-1], SessionEnded)
        assert reason in str(events[-1].error)
        assert sent(server) == control(FrameType.GOAWAY, words(0, GoAway.PROTOCOL_ERROR))
        assert server.receive_data(control(FrameType.PING, words(1))) == []
        assert server.open_streams == 0


# --- flow control


def test_a_peer_without_windows_is_never_waited_for_and_never_updated() -> None:
    """As Go's spdystream is: it sends any amount, and takes any amount."""
    client, server, stream_id = opened()
    assert server.send_data(stream_id, bytes(10 * INITIAL_WINDOW)) == 10 * INITIAL_WINDOW
    sent(server)
    server.receive_data(data(1, bytes(INITIAL_WINDOW + 1)))
    server.consumed(1, INITIAL_WINDOW + 1)
    assert sent(server) == b""
    assert sent(client) == b""


def test_a_peer_that_counts_is_waited_for_and_is_told_when_to_go_on() -> None:
    client, server, stream_id = opened()
    client.receive_data(control(FrameType.SETTINGS, words(1, 7, 1000)))
    assert client.send_data(stream_id, bytes(1500), fin=True) == 1000
    assert client.send_data(stream_id, b"x") == 0
    assert deliver(client, server) == [DataReceived(1, bytes(1000))]
    assert client.receive_data(control(FrameType.WINDOW_UPDATE, words(1, 200))) == [
        StreamWritable(1)
    ]
    assert client.send_data(stream_id, bytes(500), fin=True) == 200
    update = control(FrameType.WINDOW_UPDATE, words(0, 5)) + control(
        FrameType.SETTINGS, words(1, 7, 2000)
    )
    assert client.receive_data(update) == [StreamWritable(1)]
    assert client.send_data(stream_id, bytes(300), fin=True) == 300
    assert deliver(client, server)[-1] == StreamEnded(1)


def test_who_waits_for_a_window_goes_on_when_the_peer_overruns_ours() -> None:
    _, server, stream_id = opened()
    server.receive_data(control(FrameType.SETTINGS, words(1, 7, 1000)))
    assert server.send_data(stream_id, bytes(1500)) == 1000
    assert StreamWritable(stream_id) not in server.receive_data(
        data(stream_id, bytes(INITIAL_WINDOW))
    )
    assert server.receive_data(data(stream_id, b"x"))[-1] == StreamWritable(stream_id)
    assert server.send_data(stream_id, bytes(500)) == 500


def test_of_two_streams_that_wait_only_the_one_with_a_window_goes_on() -> None:
    client, _, _ = opened()
    other_id = client.open_stream({})
    client.receive_data(control(FrameType.SETTINGS, words(1, 7, 0)))
    assert client.send_data(1, b"x") == client.send_data(other_id, b"x") == 0
    assert client.receive_data(control(FrameType.WINDOW_UPDATE, words(other_id, 1))) == [
        StreamWritable(other_id)
    ]
    assert client.send_data(other_id, b"x") == 1


def test_a_window_that_overflows_resets_its_stream() -> None:
    client, _, _ = opened()
    assert client.receive_data(control(FrameType.WINDOW_UPDATE, words(1, 0x7FFFFFFF))) == [
        StreamReset(1, Reset.FLOW_CONTROL_ERROR)
    ]


def test_a_peer_that_stops_at_its_window_is_granted_the_next_when_this_one_was_consumed() -> None:
    client, server, stream_id = opened()
    client.send_data(stream_id, bytes(INITIAL_WINDOW))
    deliver(client, server)
    server.consumed(stream_id, INITIAL_WINDOW // 2)
    assert sent(server) == b""
    server.consumed(stream_id, INITIAL_WINDOW)
    assert sent(server) == control(FrameType.WINDOW_UPDATE, words(1, GRANT_BYTES)) + control(
        FrameType.WINDOW_UPDATE, words(0, GRANT_BYTES)
    )


def test_what_a_dead_stream_never_consumed_is_given_back_to_the_session() -> None:
    client, server, stream_id = opened()
    client.send_data(stream_id, bytes(INITIAL_WINDOW))
    deliver(client, server)
    server.reset(stream_id)
    server.consumed(stream_id, 5)
    assert sent(server) == reset(1, Reset.CANCEL) + control(
        FrameType.WINDOW_UPDATE, words(0, GRANT_BYTES)
    )


# --- whole sessions


def test_an_exec_of_kubernetes_own_client_is_understood() -> None:
    server = SpdyConnection()
    events = in_pieces(server, recorded.EXEC_SPDY, [])
    streams = {e.stream_id: e.headers["streamtype"] for e in events if isinstance(e, StreamOpened)}
    assert streams == {1: "error", 3: "stdin", 5: "stdout", 7: "stderr"}
    assert events[4:] == [DataReceived(3, b"hi\n"), StreamEnded(3)]
    assert sent(server) == b""


@given(st.lists(st.integers(0, 1000), max_size=12))
def test_a_recorded_session_means_the_same_however_it_is_cut(places: list[int]) -> None:
    for session in (recorded.EXEC_SPDY, recorded.PORT_FORWARD_SPDY):
        assert in_pieces(SpdyConnection(), session, places) == byte_by_byte(
            SpdyConnection(), session
        )


FRAMES = st.one_of(
    st.builds(data, st.integers(0, 7), st.binary(max_size=20), fin=st.booleans()),
    st.builds(control, st.integers(0, 11), st.binary(max_size=20), st.integers(0, 3)),
    st.builds(lambda i, f: ("syn", i, f), st.integers(0, 9), st.integers(0, 3)),
    st.builds(lambda i: control(FrameType.PING, words(i)), st.integers(0, 9)),
    st.builds(reset, st.integers(0, 9), st.integers(0, 12)),
    st.builds(
        lambda i, n: control(FrameType.WINDOW_UPDATE, words(i, n)),
        st.integers(0, 5),
        st.integers(0, 0xFFFFFFFF),
    ),
    st.binary(max_size=12),
)


@settings(max_examples=150)
@given(st.lists(FRAMES, max_size=12), st.lists(st.integers(0, 1000), max_size=8))
def test_any_frames_mean_the_same_however_they_are_cut(
    script: list[bytes | tuple[str, int, int]], places: list[int]
) -> None:
    codec = HeaderCodec()
    stream = b"".join(
        f if isinstance(f, bytes) else syn(f[1], codec, f[2], streamtype="x") for f in script
    )
    ends = SpdyConnection(max_streams=3), SpdyConnection(max_streams=3)
    whole = in_pieces(ends[0], stream, [])
    assert in_pieces(ends[1], stream, places) == whole
    assert sent(ends[0]) == sent(ends[1])
    assert all(not isinstance(e, SessionEnded) for e in whole[:-1])


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2), st.binary(max_size=50)),
        max_size=30,
    ),
    st.lists(st.integers(0, 5000), max_size=5),
)
def test_every_byte_sent_arrives_on_its_stream_in_order(
    script: list[tuple[str, int, bytes]], places: list[int]
) -> None:
    client, server = pair()
    ids = [client.open_stream({"n": str(n)}) for n in range(3)]
    deliver(client, server)
    for stream_id in ids:
        server.accept(stream_id)
    deliver(server, client)
    said: dict[tuple[str, int], bytes] = {}
    for who, n, payload in script:
        said[who, ids[n]] = said.get((who, ids[n]), b"") + payload
        (client if who == "a" else server).send_data(ids[n], payload)
    heard: dict[tuple[str, int], bytes] = {}
    for who, sender, receiver in (("a", client, server), ("b", server, client)):
        for event in in_pieces(receiver, sent(sender), places):
            assert isinstance(event, DataReceived)
            heard[who, event.stream_id] = heard.get((who, event.stream_id), b"") + event.data
    assert heard == {key: value for key, value in said.items() if value}


def held_bytes(server: SpdyConnection, chunk: bytes, times: int) -> int:
    """How much more memory is in use after taking a chunk so many times and answering what it asks."""

    def feed(count: int) -> None:
        for _ in range(count):
            server.receive_data(chunk)
            server.data_to_send()

    feed(1)
    tracemalloc.start()
    feed(times)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return grown


@pytest.mark.parametrize(
    "chunk",
    [
        data(1, bytes(60_000)),
        data(1, b"") * 100,
        data(99, bytes(60_000)),
        control(FrameType.PING, words(1)) * 100,
        control(FrameType.WINDOW_UPDATE, words(1, 1)) * 100,
        control(FrameType.SETTINGS, words(1, 7, 5)) * 100,
        control(77, bytes(60_000)),
    ],
    ids=["data", "empty", "nobody", "pings", "windows", "settings", "unknown"],
)
def test_what_a_peer_repeats_is_not_kept(chunk: bytes) -> None:
    server = SpdyConnection()
    server.receive_data(syn(1, HeaderCodec()))
    server.accept(1)
    assert held_bytes(server, chunk, 40) < 20_000


def test_streams_that_are_over_leave_nothing() -> None:
    server, codec = SpdyConnection(), HeaderCodec()
    tracemalloc.start()
    before = 0
    for stream_id in range(1, 3001, 2):
        events: list[SpdyEvent] = server.receive_data(
            syn(stream_id, codec, streamtype="data") + data(stream_id, b"x", fin=True)
        )
        assert len(events) == 3
        server.accept(stream_id)
        server.end(stream_id)
        server.data_to_send()
        if stream_id == 1001:
            before, _ = tracemalloc.get_traced_memory()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert server.open_streams == 0
    assert after - before < 20_000


# --- what it costs


def turns(server: SpdyConnection, data: bytes) -> list[list[SpdyEvent]]:
    """What each turn made of it."""
    each = [server.receive_data(data)]
    while server.has_more:
        each.append(server.receive_data(b""))
    return each


def test_small_frames_are_looked_at_a_bounded_number_in_a_turn() -> None:
    client, server, stream_id = opened()
    for _ in range(5000):
        client.send_data(stream_id, b"x")
    heard = turns(server, sent(client))
    assert max(map(len, heard)) <= COST_PER_TURN
    assert len(heard) == -(-2 * 5000 // COST_PER_TURN)  # a header and a payload each
    assert sum(map(len, heard)) == 5000


def test_a_long_frame_is_one_frame() -> None:
    client, server, stream_id = opened()
    client.send_data(stream_id, bytes(MAX_DATA_BYTES))
    assert len(turns(server, sent(client))) == 1


def test_streams_cost_more_than_frames() -> None:
    client, server = pair()
    for _ in range(200):
        client.reset(client.open_stream({"streamtype": "data"}))
    heard = turns(server, sent(client))
    assert max(map(len, heard)) <= 2 * COST_PER_TURN // STREAM_COST + 2
    assert sum(map(len, heard)) == 400


def test_what_was_not_looked_at_is_lost_with_the_session() -> None:
    client, server, stream_id = opened()
    for _ in range(COST_PER_TURN):
        client.send_data(stream_id, b"x")
    before, there_was_more = server.receive_data(sent(client)), server.has_more
    server.close()
    assert (len(before), there_was_more) == (COST_PER_TURN // 2, True)
    assert not server.has_more
    assert server.receive_data(b"") == []


class Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self, mode: int = ..., /) -> bytes: ...


def bomb(stream_id: int, deflate: Compressor, inflated: int) -> bytes:
    texts = b"a", b"\xff" * (inflated - 13)
    block = frames.WORD.pack(1) + b"".join(frames.WORD.pack(len(t)) + t for t in texts)
    payload = frames.WORDS.pack(stream_id, 0) + b"\0\0" + deflate.compress(block)
    return control(FrameType.SYN_STREAM, payload + deflate.flush(zlib.Z_SYNC_FLUSH))


def test_header_blocks_cost_what_they_inflate_to_and_end_the_session_when_it_is_too_much() -> None:
    server, deflate = SpdyConnection(), zlib.compressobj(9, zdict=frames.DICTIONARY)
    size = frames.MAX_HEADER_BLOCK_BYTES
    wire = b"".join(bomb(2 * n + 1, deflate, size) for n in range(100))
    heard = turns(server, wire)
    assert max(map(len, heard)) <= COST_PER_TURN * INFLATED_BYTES_A_FRAME // size + 1
    last = heard[-1][-1]
    assert isinstance(last, SessionEnded)
    assert last.error is not None
    assert "64 times their size" in last.error
    inflated = size * sum(len(each) for each in heard)
    assert inflated <= frames.FREE_INFLATED_BYTES + frames.MAX_INFLATION * len(wire)
    assert sent(server)[-16:-8] == control(FrameType.GOAWAY, bytes(8))[:8]


def test_header_blocks_of_any_number_of_honest_streams_are_read() -> None:
    client, server = pair()
    for number in range(5000):
        headers = {"streamtype": "data", "port": "8080", "requestid": str(number)}
        client.reset(client.open_stream(headers))
        assert not any(isinstance(event, SessionEnded) for event in deliver(client, server))


def test_streams_are_bounded_by_the_share_as_well_and_given_back_once() -> None:
    shares = Shares(3, 2)
    first = SpdyConnection(share=Share(shares, "pod", 10))
    second = SpdyConnection(share=Share(shares, "pod", 10))
    clients = [SpdyConnection(client=True) for _ in range(2)]
    one = clients[0].open_stream({})
    assert deliver(clients[0], first) == [StreamOpened(one, {})]
    for _ in range(2):
        clients[1].open_stream({})
    assert len(deliver(clients[1], second)) == 1
    assert deliver(second, clients[1]) == [StreamReset(3, Reset.REFUSED_STREAM)]
    clients[0].reset(one)
    deliver(clients[0], first)
    assert shares.used == 1
    clients[1].open_stream({})
    assert len(deliver(clients[1], second)) == 1
    second.close()
    first.receive_eof()
    assert shares.used == 0


def test_room_is_what_a_send_would_take() -> None:
    _client, server, stream_id = opened()
    assert server.room(stream_id, 1 << 20) == 1 << 20, "this peer does not count"
    window = frames.WORDS.pack(1, frames.SETTINGS_INITIAL_WINDOW_SIZE) + frames.WORD.pack(5)
    server.receive_data(control(FrameType.SETTINGS, window))
    assert server.room(stream_id, 1 << 20) == 5
    assert server.send_data(stream_id, b"12345") == 5
    assert server.room(stream_id, 1 << 20) == 0
    update = control(FrameType.WINDOW_UPDATE, frames.WORDS.pack(stream_id, 3))
    assert server.receive_data(update) == [StreamWritable(stream_id)]
    assert server.room(stream_id, 1 << 20) == 3
    assert server.room(99, 7) == 7, "what goes nowhere has room"
