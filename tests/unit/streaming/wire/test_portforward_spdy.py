"""Port-forward over SPDY: pairs of streams, and that no connection touches another."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.streaming.wire.portforward import (
    MAX_ERROR_CHARACTERS,
    Closed,
    ConnectionData,
    ConnectionEnd,
    ConnectionOpened,
    ConnectionReset,
    ConnectionWritable,
    PairBegun,
)
from cri_shim.streaming.wire.portforward_spdy import (
    MAX_EARLY_BYTES,
    MAX_REQUEST_ID_CHARACTERS,
    SpdyPortForward,
    parse_port,
)
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    GoAwayReceived,
    StreamEnded,
    StreamReplied,
    StreamReset,
)
from cri_shim.streaming.wire.spdy_frames import FrameType, control_frame
from cri_shim.streaming.wire.tunnel import TunnelledSpdyConnection
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import deliver, in_pieces, sent

if TYPE_CHECKING:
    from cri_shim.streaming.wire.portforward import PortForwardEvent


class Client:
    """Makes pairs of streams."""

    def __init__(self) -> None:
        self.machine = SpdyPortForward(SpdyConnection())
        self.spdy = SpdyConnection(client=True)
        assert self.machine.start() == []

    def make(self, kind: str, port: int | str = 80, request: str | None = "r") -> int:
        headers = {"streamtype": kind, "port": str(port)}
        if request is not None:
            headers["requestid"] = request
        return self.spdy.open_stream(headers)

    def connect(self, request: str = "r", port: int = 80) -> tuple[int, int]:
        """The ids of the error and the data stream of a connection that is there."""
        error_id, data_id = (self.make(kind, port, request) for kind in ("error", "data"))
        assert self.say() == [PairBegun(request), ConnectionOpened(data_id, port)]
        assert self.hear() == []
        return error_id, data_id

    def say(self) -> list[PortForwardEvent]:
        return deliver(self.spdy, self.machine)

    def hear(self) -> list[object]:
        """What the machine says but for replies: (stream, bytes), or None and "reset" for its ends."""
        heard: list[object] = []
        for event in deliver(self.machine, self.spdy):
            match event:
                case DataReceived(stream_id, data):
                    heard.append((stream_id, data))
                case StreamEnded(stream_id):
                    heard.append((stream_id, None))
                case StreamReset(stream_id, _):
                    heard.append((stream_id, "reset"))
                case GoAwayReceived():
                    heard.append("goaway")
                case _:
                    assert isinstance(event, StreamReplied)
        return heard


def test_a_connection_is_used_both_ways_half_closed_and_released() -> None:
    client = Client()
    error_id, data_id = client.connect()
    assert client.machine.open_connections == 1
    client.spdy.end(error_id)
    client.spdy.send_data(data_id, b"ask", fin=True)
    assert client.say() == [ConnectionData(data_id, b"ask"), ConnectionEnd(data_id)]
    assert client.machine.send(data_id, b"answer") == 6
    client.machine.end(data_id)
    assert client.hear() == [(data_id, b"answer"), (data_id, None), (error_id, None)]
    assert client.machine.open_connections == 0
    client.machine.complete(data_id)
    assert client.machine.send(data_id, b"late") == 4
    assert sent(client.machine) == b""


def test_a_target_may_end_first() -> None:
    client = Client()
    error_id, data_id = client.connect()
    client.machine.end(data_id)
    assert client.hear() == [(data_id, None)]
    client.spdy.send_data(data_id, b"more")
    assert client.say() == [ConnectionData(data_id, b"more")]
    client.spdy.end(data_id)
    assert client.say() == [ConnectionEnd(data_id)]
    assert client.hear() == [(error_id, None)]
    assert client.machine.open_connections == 0


def test_a_connection_that_is_complete_is_closed_for_a_client_that_would_still_send() -> None:
    client = Client()
    error_id, data_id = client.connect()
    client.machine.send(data_id, b"bye")
    client.machine.complete(data_id)
    assert client.hear() == [
        (data_id, b"bye"),
        (data_id, None),
        (data_id, "reset"),
        (error_id, None),
    ]
    assert client.machine.open_connections == 0


def test_the_streams_of_a_pair_may_come_in_any_order_and_mixed_with_others() -> None:
    client = Client()
    data_a, error_b, error_a = (
        client.make("data", 1, "a"),
        client.make("error", 2, "b"),
        client.make("error", 1, "a"),
    )
    assert client.say() == [PairBegun("a"), PairBegun("b"), ConnectionOpened(data_a, 1)]
    data_b = client.make("data", 2, "b")
    assert client.say() == [ConnectionOpened(data_b, 2)]
    assert error_a != error_b
    client.machine.expire("a")
    client.machine.expire("unheard of")
    assert client.hear() == []


def test_clients_without_request_ids_are_paired_by_the_numbers_of_their_streams() -> None:
    client = Client()
    ids = [client.make(kind, 80, None) for kind in ("error", "data", "error", "data")]
    assert client.say() == [
        PairBegun("1"),
        ConnectionOpened(ids[1], 80),
        PairBegun("5"),
        ConnectionOpened(ids[3], 80),
    ]


def test_a_request_id_can_be_used_again_once_its_connection_is_there() -> None:
    client = Client()
    client.connect("x")
    client.connect("x")
    assert client.machine.open_connections == 2


def test_data_before_the_error_stream_is_kept_and_delivered_with_its_end() -> None:
    client = Client()
    data_id = client.make("data")
    client.spdy.send_data(data_id, b"early ")
    client.spdy.send_data(data_id, b"bird", fin=True)
    assert client.say() == [PairBegun("r")]
    client.make("error")
    assert client.say() == [
        ConnectionOpened(data_id, 80),
        ConnectionData(data_id, b"early bird"),
        ConnectionEnd(data_id),
    ]


def test_data_before_the_error_stream_is_bounded_over_all_pairs() -> None:
    client = Client()
    ids = [client.make("data", 80, str(n)) for n in range(5)]
    for data_id in ids[:4]:
        client.spdy.send_data(data_id, bytes(MAX_EARLY_BYTES // 4))
    client.say()
    assert client.hear() == []
    client.spdy.send_data(ids[4], b"x")
    client.say()
    assert client.hear() == [(ids[4], "reset")]
    client.spdy.reset(ids[0])
    ids.append(client.make("data", 80, "again"))
    client.spdy.send_data(ids[-1], b"x")
    client.say()
    assert client.hear() == []


@pytest.mark.parametrize(
    ("kind", "port", "request_id"),
    [
        ("data", "", "r"),
        ("data", "0", "r"),
        ("data", "65536", "r"),
        ("data", "-1", "r"),
        ("data", "0x50", "r"),
        ("data", "\u0668\u0660", "r"),
        ("stdin", "80", "r"),
        ("", "80", "r"),
        ("error", "80", "r" * (MAX_REQUEST_ID_CHARACTERS + 1)),
    ],
)
def test_a_stream_of_a_wrong_kind_or_port_is_refused_alone(
    kind: str, port: str, request_id: str
) -> None:
    client = Client()
    bad_id = client.make(kind, port, request_id)
    assert client.say() == []
    assert client.hear() == [(bad_id, "reset")]
    client.connect()


def test_a_second_stream_of_one_kind_is_refused_and_the_pair_lives() -> None:
    client = Client()
    error_id, again_id = client.make("error"), client.make("error")
    client.say()
    assert client.hear() == [(again_id, "reset")]
    data_id = client.make("data")
    assert client.say() == [ConnectionOpened(data_id, 80)]
    assert error_id < data_id


def test_a_pair_that_names_two_ports_is_refused_with_a_text() -> None:
    client = Client()
    error_id, data_id = client.make("error", 80), client.make("data", 81)
    assert client.say() == [PairBegun("r")]
    assert client.hear() == [
        (error_id, b"request r names two ports, 80 and 81"),
        (data_id, "reset"),
        (error_id, None),
    ]
    assert client.machine.open_connections == 0


def test_a_pair_that_stays_half_expires() -> None:
    client = Client()
    error_id, data_id = client.make("error", 80, "a"), client.make("data", 80, "b")
    client.say()
    client.machine.expire("a")
    client.machine.expire("b")
    [text, end, reset] = client.hear()
    assert text == (error_id, b"timed out waiting for the other stream of request a")
    assert (end, reset) == ((error_id, None), (data_id, "reset"))
    client.connect("a")


def test_a_connection_that_fails_says_why_and_touches_no_other() -> None:
    client = Client()
    error_id, data_id = client.connect("a")
    _, other_id = client.connect("b")
    client.machine.fail(data_id, "connection refused")
    client.machine.fail(data_id, "again")
    assert client.hear() == [
        (error_id, b"connection refused"),
        (data_id, "reset"),
        (error_id, None),
    ]
    client.spdy.send_data(other_id, b"alive")
    assert client.say() == [ConnectionData(other_id, b"alive")]
    assert client.machine.open_connections == 1


def test_a_long_error_is_cut() -> None:
    client = Client()
    error_id, data_id = client.connect()
    client.machine.fail(data_id, "x" * 10**6)
    assert (error_id, b"x" * MAX_ERROR_CHARACTERS) in client.hear()


def test_a_reset_by_the_target_is_passed_on_without_words() -> None:
    client = Client()
    error_id, data_id = client.connect()
    client.machine.reset(data_id)
    assert client.hear() == [(data_id, "reset"), (error_id, None)]
    client.spdy.send_data(error_id, b"?")
    assert client.say() == []


def test_a_reset_by_the_client_drops_the_connection_and_lets_go_of_its_error_stream() -> None:
    client = Client()
    error_id, data_id = client.connect("a")
    client.connect("b")
    client.spdy.reset(data_id)
    assert client.say() == [ConnectionReset(data_id)]
    assert client.hear() == [(error_id, None)]
    assert client.machine.open_connections == 1


def test_a_connection_lives_without_its_error_stream_and_a_half_pair_may_be_given_up() -> None:
    client = Client()
    error_id, data_id = client.connect()
    client.spdy.reset(error_id)
    assert client.say() == []
    client.machine.fail(data_id, "nobody reads this")
    assert client.hear() == [(data_id, "reset")]
    half_id = client.make("data", 80, "half")
    client.spdy.reset(half_id)
    assert client.say() == [PairBegun("half")]
    client.make("error", 80, "half")
    assert client.say() == [PairBegun("half")]


def test_a_client_that_ended_its_error_stream_early_still_hears_the_error() -> None:
    client = Client()
    error_id, data_id = client.connect()
    client.spdy.end(error_id)
    client.say()
    client.machine.fail(data_id, "no")
    assert client.hear()[0] == (error_id, b"no")


def test_a_client_with_windows_is_told_of_and_waited_for() -> None:
    client = Client()
    _, data_id = client.connect()
    settings = control_frame(FrameType.SETTINGS, b"\0\0\0\1\0\0\0\7\0\0\0\5")
    assert client.machine.receive_data(settings) == []
    assert client.machine.send(data_id, b"too much") == 5
    update = control_frame(FrameType.WINDOW_UPDATE, data_id.to_bytes(4, "big") + b"\0\0\0\7")
    assert client.machine.receive_data(update) == [ConnectionWritable(data_id)]
    client.spdy.send_data(data_id, bytes(64 << 10))
    client.say()
    sent(client.machine)
    client.machine.consumed(data_id, 64 << 10)
    assert sent(client.machine)


def test_a_text_that_no_window_is_open_for_is_not_waited_for() -> None:
    client = Client()
    error_id, data_id = client.connect()
    client.machine.receive_data(control_frame(FrameType.SETTINGS, b"\0\0\0\1\0\0\0\7\0\0\0\0"))
    client.machine.fail(data_id, "refused")
    assert client.hear() == [(data_id, "reset"), (error_id, None)]
    update = control_frame(FrameType.WINDOW_UPDATE, error_id.to_bytes(4, "big") + b"\0\0\0\7")
    assert client.machine.receive_data(update) == []


def test_an_error_stream_reset_in_the_same_breath_hears_nothing() -> None:
    client = Client()
    error_id, data_id = client.make("error", 80), client.make("data", 81)
    client.spdy.reset(error_id)
    assert client.say() == [PairBegun("r")]
    assert client.hear() == [(data_id, "reset")]


def test_closing_ends_every_stream_and_the_session() -> None:
    client = Client()
    error_id, data_id = client.connect()
    half_id = client.make("error", 80, "half")
    client.say()
    client.machine.close()
    assert client.hear() == [(error_id, None), (data_id, None), (half_id, None), "goaway"]
    assert client.machine.is_finished
    assert client.machine.open_connections == 0


def test_a_client_that_hangs_up_or_talks_nonsense_is_gone() -> None:
    client = Client()
    client.connect()
    assert client.machine.receive_eof() == [Closed(None)]
    assert client.machine.open_connections == 0
    client = Client()
    client.machine.ping()
    assert len(sent(client.machine)) == 12
    [closed] = client.machine.receive_data(b"\x80\x02\0\1\0\0\0\0")
    assert isinstance(closed, Closed)
    assert closed.error


@given(st.booleans(), st.lists(st.integers(0, 400), max_size=10))
def test_kubernetes_own_client_is_understood_plain_and_tunnelled(
    tunnelled: bool, places: list[int]
) -> None:
    session = TunnelledSpdyConnection() if tunnelled else SpdyConnection()
    wire = recorded.PORT_FORWARD_TUNNEL if tunnelled else recorded.PORT_FORWARD_SPDY
    machine = SpdyPortForward(session)
    assert in_pieces(machine, wire, places) == [
        PairBegun("0"),
        ConnectionOpened(3, 18399),
        ConnectionData(3, b"GET /e0.head HTTP/1.1\r\nHost: 127.0.0.1:18398\r\n\r\n"),
        ConnectionReset(3),
    ]


def test_thousands_of_connections_some_reset_all_others_get_their_bytes() -> None:
    """In one session, fifty at a time, each with its own bytes; every seventh is reset."""
    client, chance = Client(), random.Random(7)
    for batch in range(60):
        said = {}
        for n in range(50):
            error_id, data_id = client.connect(f"{batch}.{n}")
            client.spdy.end(error_id)  # as clients do
            said[data_id] = b"%d.%d " % (batch, n) * chance.randrange(1, 9)
        order = list(said)
        chance.shuffle(order)
        for data_id in order:
            client.spdy.send_data(data_id, said[data_id][:5])
        for data_id in reversed(order):
            client.spdy.send_data(data_id, said[data_id][5:], fin=data_id % 7 != 0)
        for event in client.say():
            if isinstance(event, ConnectionData):
                client.machine.send(event.connection_id, event.data)
            elif isinstance(event, ConnectionEnd):
                client.machine.end(event.connection_id)
        for data_id in order:
            client.machine.reset(data_id)  # those that are left
        heard: dict[int, bytes] = {}
        for answer in client.hear():
            assert isinstance(answer, tuple)
            if isinstance(answer[1], bytes):
                heard[answer[0]] = heard.get(answer[0], b"") + answer[1]
        assert heard == said
        assert client.machine.open_connections == 0
    assert client.machine.streams == 0
    assert not client.machine.half_open


def test_streams_that_are_made_and_reset_in_one_breath_are_nothing() -> None:
    client = Client()
    for kind in ("data", "error", "video"):
        client.spdy.reset(client.make(kind))
    error_id, data_id = client.make("error", 80, "s"), client.make("data", 80, "s")
    client.spdy.reset(error_id)
    client.spdy.reset(data_id)
    events = client.say()
    assert events[-2:] == [ConnectionOpened(data_id, 80), ConnectionReset(data_id)]
    assert client.machine.open_connections == 0
    assert client.hear() == []


@pytest.mark.parametrize(
    ("text", "port"), [("1", 1), ("65535", 65535), ("080", 80), ("", None), ("1e3", None)]
)
def test_a_port_is_plain_digits(text: str, port: int | None) -> None:
    assert parse_port(text) == port
