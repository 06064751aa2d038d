"""WebSocket frames: the RFC's examples, its rules, and two ends against each other."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri_shim.streaming.wire.turn import COST_PER_TURN
from cri_shim.streaming.wire.websocket import (
    CloseCode,
    MessageData,
    PongReceived,
    WebSocketClosed,
    WebSocketConnection,
)
from tests.unit.streaming.wire.roleplay import (
    RandomKeys,
    byte_by_byte,
    deliver,
    in_pieces,
    merged,
    sent,
    whole_messages,
)

MASK = b"\x37\xfa\x21\x3d"


def pair() -> tuple[WebSocketConnection, WebSocketConnection]:
    return WebSocketConnection(mask_key=RandomKeys()), WebSocketConnection()


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, mask: bytes | None = MASK, rsv: int = 0
) -> bytes:
    """A frame as a client makes it, or a server without a mask; any of its parts may be wrong."""
    size = len(payload)
    short = size if size < 126 else 126 if size < 65536 else 127
    head = bytes(((0x80 if fin else 0) | rsv | opcode, (0x80 if mask else 0) | short))
    head += b"" if size < 126 else size.to_bytes(2 if size < 65536 else 8, "big")
    if mask:
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return head + (mask or b"") + payload


def message(data: bytes, *, text: bool = False) -> MessageData:
    return MessageData(data, text, begins=True, ends=True)


# --- the examples of RFC 6455 §5.7


@pytest.mark.parametrize(
    ("wire", "events"),
    [
        ("818537fa213d7f9f4d5158", [message(b"Hello", text=True)]),
        ("018337fa213d7f9f4d" + "808237fa213d5b95", [message(b"Hello", text=True)]),
        ("8a8537fa213d7f9f4d5158", [PongReceived(b"Hello")]),
        ("828037fa213d", [message(b"")]),
    ],
)
def test_a_server_reads_the_rfcs_examples_however_they_are_cut(
    wire: str, events: list[object]
) -> None:
    data = bytes.fromhex(wire)
    assert in_pieces(WebSocketConnection(), data, []) == events
    assert byte_by_byte(WebSocketConnection(), data) == events


@pytest.mark.parametrize(
    ("wire", "events"),
    [
        ("810548656c6c6f", [message(b"Hello", text=True)]),
        ("010348656c" + "80026c6f", [message(b"Hello", text=True)]),
        ("827e0100" + "ab" * 256, [message(b"\xab" * 256)]),
        ("827f0000000000010000" + "cd" * 65536, [message(b"\xcd" * 65536)]),
    ],
)
def test_a_client_reads_the_rfcs_examples(wire: str, events: list[object]) -> None:
    client, _ = pair()
    assert in_pieces(client, bytes.fromhex(wire), [3, 9]) == events


def test_a_ping_is_answered_with_its_payload() -> None:
    client, server = pair()
    assert server.receive_data(bytes.fromhex("898537fa213d7f9f4d5158")) == []
    assert sent(server) == bytes.fromhex("8a0548656c6c6f")
    server.ping(b"x" * 200)
    deliver(server, client)
    assert deliver(client, server) == [PongReceived(b"x" * 125)]


# --- what we send


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 65535, 65536, 100_000])
def test_a_message_arrives_whole_whatever_its_length(size: int) -> None:
    client, server = pair()
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    for sender, receiver in ((client, server), (server, client)):
        sender.send_message([payload[:7], memoryview(payload)[7:]], prefix=b"\x01")
        assert deliver(sender, receiver) == [message(b"\x01" + payload)]


def test_a_servers_payload_is_sent_without_a_copy() -> None:
    server = WebSocketConnection()
    payload = bytes(1000)
    server.send_message([payload], prefix=b"\x02")
    head, body = server.data_to_send()
    assert bytes(head) == b"\x82\x7e\x03\xe9\x02"
    assert body is payload


def test_a_message_comes_as_it_arrives_and_says_where_it_ends() -> None:
    server = WebSocketConnection()
    wire = frame(2, b"abcdefgh")
    assert merged(server.receive_data(wire[:9])) == [
        MessageData(b"abc", is_text=False, begins=True, ends=False)
    ]
    assert merged(server.receive_data(wire[9:])) == [
        MessageData(b"defgh", is_text=False, begins=False, ends=True)
    ]


def test_control_frames_may_come_between_the_fragments_of_a_message() -> None:
    server = WebSocketConnection()
    wire = frame(1, "ä".encode()[:1], fin=False) + frame(9, b"?") + frame(0, "ä".encode()[1:])
    assert merged(server.receive_data(wire)) == [message("ä".encode(), text=True)]
    assert sent(server) == frame(10, b"?", mask=None)


def test_a_last_fragment_may_be_empty() -> None:
    server = WebSocketConnection()
    wire = frame(2, b"", fin=False) + frame(2 - 2, b"ab", fin=False) + frame(0, b"")
    assert in_pieces(server, wire, []) == [message(b"ab")]


# --- closing


def test_a_close_is_answered_with_its_code_and_ends_the_connection() -> None:
    client, server = pair()
    client.close(CloseCode.GOING_AWAY, "bye")
    client.close()
    client.send_message([b"late"])
    assert deliver(client, server) == [WebSocketClosed(1001, "bye")]
    assert server.receive_data(frame(2, b"x")) == []
    assert deliver(server, client) == [WebSocketClosed(1001, "")]
    assert server.receive_eof() == client.receive_eof() == []
    assert sent(client) == b""


def test_a_close_without_a_code_is_answered_without_one() -> None:
    server = WebSocketConnection()
    assert server.receive_data(frame(8, b"")) == [WebSocketClosed(CloseCode.NO_STATUS, "")]
    assert sent(server) == frame(8, b"", mask=None)


def test_the_answer_to_our_own_close_is_not_answered() -> None:
    client, server = pair()
    server.close(CloseCode.NORMAL, "ü" * 100)
    [closed] = deliver(server, client)
    assert closed == WebSocketClosed(1000, "ü" * 61)
    assert deliver(client, server) == [WebSocketClosed(1000, "")]
    assert sent(server) == b""
    assert server.is_closing


def test_a_client_that_hangs_up_between_messages_is_in_order_and_within_one_is_not() -> None:
    assert WebSocketConnection().receive_eof() == [WebSocketClosed(1006, "")]
    for part in (frame(2, b"abc")[:-1], frame(2, b"abc")[:1], frame(2, b"abc", fin=False)):
        server = WebSocketConnection()
        server.receive_data(part)
        [closed] = server.receive_eof()
        assert closed == WebSocketClosed(1006, "", "the connection ended within a message")


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(2, b"a", mask=None), 1002),
        (frame(2, b"a", rsv=0x40), 1002),
        (frame(3, b"a"), 1002),
        (frame(11, b"a"), 1002),
        (frame(0, b"a"), 1002),
        (frame(2, b"a", fin=False) + frame(2, b"a"), 1002),
        (frame(9, b"a" * 126), 1002),
        (frame(9, b"a", fin=False), 1002),
        (b"\x82\xff\xff" + bytes(11), 1002),
        (frame(8, b"a"), 1002),
        (frame(8, (1005).to_bytes(2, "big")), 1002),
        (frame(8, (999).to_bytes(2, "big")), 1002),
        (frame(8, (1000).to_bytes(2, "big") + b"\xff"), 1007),
        (frame(1, b"\xff"), 1007),
        (frame(1, b"\xc3"), 1007),
        (frame(1, b"\xc3", fin=False) + frame(0, b"a"), 1007),
    ],
)
def test_what_breaks_the_protocol_closes_with_the_code_for_it(wire: bytes, code: int) -> None:
    everywhere = list(range(len(wire)))
    for places in (everywhere, everywhere[:0]):
        server = WebSocketConnection()
        closed = in_pieces(server, wire, places)[-1]
        assert isinstance(closed, WebSocketClosed)
        assert closed.code == code
        assert closed.error
        said = sent(server)
        assert (said[0], said[2:4]) == (0x88, code.to_bytes(2, "big"))
        assert server.receive_data(frame(2, b"x")) == []


def test_a_client_takes_no_masked_frame() -> None:
    client, _ = pair()
    [closed] = client.receive_data(frame(2, b"a"))
    assert isinstance(closed, WebSocketClosed)
    assert closed.code == 1002


def test_text_that_turns_out_not_to_be_utf8_is_given_out_as_far_as_it_had_come() -> None:
    server = WebSocketConnection()
    wire = frame(1, b"abc\xff")
    [event] = merged(server.receive_data(wire[:8]))
    assert event == MessageData(b"ab", is_text=True, begins=True, ends=False)
    [closed] = server.receive_data(wire[8:])
    assert isinstance(closed, WebSocketClosed)
    assert closed.code == 1007


# --- any bytes

WIRE = st.lists(
    st.builds(
        frame,
        st.sampled_from([0, 0, 1, 2, 8, 9, 10, 15]),
        st.binary(max_size=200) | st.text(max_size=20).map(str.encode),
        fin=st.booleans(),
    )
    | st.binary(max_size=10),
    max_size=8,
).map(b"".join)


@settings(max_examples=200)
@given(WIRE, st.lists(st.integers(0, 2000), max_size=8))
def test_any_bytes_mean_the_same_however_they_are_cut(wire: bytes, places: list[int]) -> None:
    ends = WebSocketConnection(), WebSocketConnection()
    whole = in_pieces(ends[0], wire, [])
    assert whole_messages(in_pieces(ends[1], wire, places)) == whole_messages(whole)
    assert sent(ends[0]) == sent(ends[1])
    assert all(not isinstance(event, WebSocketClosed) for event in whole[:-1])


def test_a_long_message_is_not_kept() -> None:
    server = WebSocketConnection()
    server.receive_data(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK)
    chunk = bytes(65536)
    server.receive_data(chunk)
    tracemalloc.start()
    for _ in range(100):
        server.receive_data(chunk)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000


def test_small_frames_are_looked_at_a_bounded_number_in_a_turn() -> None:
    client, server = pair()
    for number in range(3000):
        if number % 2:
            client.ping(b"p")
        else:
            client.send_message([b"x"])
    heard = [server.receive_data(sent(client))]
    answered = [len(sent(server))]
    while server.has_more:
        heard.append(server.receive_data(b""))
        answered.append(len(sent(server)))
    assert max(map(len, heard)) <= COST_PER_TURN
    assert max(answered) <= COST_PER_TURN * len(frame(10, b"p", mask=None))
    assert sum(map(len, heard)) == 1500
    assert sum(answered) == 1500 * len(frame(10, b"p", mask=None))


def test_an_end_before_everything_was_looked_at_is_not_in_order() -> None:
    client, server = pair()
    for _ in range(2 * COST_PER_TURN):
        client.ping()
    server.receive_data(sent(client))
    assert server.has_more
    [closed] = server.receive_eof()
    assert isinstance(closed, WebSocketClosed)
    assert closed.error
    assert not server.has_more
