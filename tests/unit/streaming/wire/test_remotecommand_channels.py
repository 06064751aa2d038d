"""Exec and attach over the channels of a WebSocket."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.streaming.wire.channels import ChannelConnection, ChannelData, ConnectionEnded
from cri_shim.streaming.wire.outcome import Exited, Failed
from cri_shim.streaming.wire.remotecommand import (
    Channel,
    Closed,
    Ready,
    RequestedStreams,
    Resized,
    StdinData,
    StdinEnd,
)
from cri_shim.streaming.wire.remotecommand_channels import ChannelRemoteCommand
from cri_shim.streaming.wire.upgrade import V1, V1_BASE64, V4, V4_BASE64, V5
from cri_shim.streaming.wire.websocket import WebSocketConnection
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import RandomKeys, deliver, in_pieces, sent

PROTOCOLS = [V1, V1_BASE64, V4, V4_BASE64, V5]
ALL = RequestedStreams(stdin=True, stdout=True, stderr=True, tty=False)
TTY = RequestedStreams(stdin=True, stdout=True, stderr=True, tty=True)
STDERR = RequestedStreams(stdin=False, stdout=False, stderr=True, tty=False)
STDIN = RequestedStreams(stdin=True, stdout=False, stderr=False, tty=False)


def pair(
    protocol: str, streams: RequestedStreams
) -> tuple[ChannelConnection, ChannelRemoteCommand]:
    """A client and a machine that has begun."""
    client = ChannelConnection(protocol, WebSocketConnection(mask_key=RandomKeys()))
    machine = ChannelRemoteCommand(protocol, streams)
    assert machine.start() == [Ready()]
    assert machine.is_ready
    assert machine.missing == []
    assert deliver(machine, client) == []
    return client, machine


@pytest.mark.parametrize(("streams", "channel"), [(ALL, 1), (STDERR, 2), (STDIN, 3)])
def test_a_first_empty_message_tells_the_client_that_it_began(
    streams: RequestedStreams, channel: int
) -> None:
    machine = ChannelRemoteCommand(V4, streams)
    machine.start()
    assert sent(machine) == bytes((0x82, 1, channel))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_streams_and_sizes_go_through(protocol: str) -> None:
    client, machine = pair(protocol, TTY)
    client.send(Channel.STDIN, b"in")
    client.send(Channel.RESIZE, b'{"Width":80,"Height":24}')
    assert deliver(client, machine) == [StdinData(b"in"), Resized(80, 24)]
    assert machine.send(Channel.STDOUT, b"out") == 3
    assert machine.send(Channel.STDERR, b"a terminal has none") == 19
    assert deliver(machine, client) == [ChannelData(1, b"out")]
    machine.end(Channel.STDOUT)
    assert machine.send(Channel.STDOUT, b"late") == 4
    machine.consumed(2)
    assert sent(machine) == b""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_outcome_comes_last_and_the_connection_closes_in_order(protocol: str) -> None:
    client, machine = pair(protocol, ALL)
    machine.send(Channel.STDERR, b"err")
    machine.finish(Failed("gone"))
    machine.finish(Exited(0))
    assert machine.is_finished
    err, document, end = deliver(machine, client)
    assert err == ChannelData(2, b"err")
    assert document.channel == Channel.ERROR
    if protocol in (V1, V1_BASE64):
        assert document.data == b"Internal error occurred: gone"
    else:
        assert json.loads(document.data)["reason"] == "InternalError"
    assert end == ConnectionEnded(None)
    assert deliver(client, machine) == [Closed(None)]


def test_old_versions_hear_nothing_of_success() -> None:
    client, machine = pair(V1, ALL)
    machine.finish(Exited(0))
    assert deliver(machine, client) == [ConnectionEnded(None)]


def test_stdin_ends_with_v5s_signal_and_once() -> None:
    client, machine = pair(V5, ALL)
    client.send(Channel.STDIN, b"a")
    client.end(Channel.STDIN)
    client.end(Channel.STDIN)
    client.end(Channel.ERROR)
    client.send(Channel.STDIN, b"late")
    assert deliver(client, machine) == [StdinData(b"a"), StdinEnd()]


def test_what_was_not_asked_for_is_passed_over() -> None:
    client, machine = pair(V5, STDERR)
    for channel in (*Channel, 9):
        client.send(channel, b'{"Width":80,"Height":24}')
    client.end(Channel.STDIN)
    assert deliver(client, machine) == []


def test_a_finished_session_hears_only_that_the_client_is_gone() -> None:
    client, machine = pair(V5, ALL)
    machine.finish(Exited(0))
    client.send(Channel.STDIN, b"late")
    client.end(Channel.STDIN)
    assert deliver(client, machine) == []
    assert machine.receive_eof() == [Closed(None)]


def test_a_client_that_breaks_the_protocol_is_gone_with_the_reason() -> None:
    _, machine = pair(V5, ALL)
    [closed] = machine.receive_data(b"\x82\x00")
    assert closed == Closed("clients must mask their frames, servers must not")
    assert sent(machine)[:1] == b"\x88"


def test_pings_keep_the_connection() -> None:
    _, machine = pair(V5, ALL)
    machine.ping()
    assert sent(machine) == b"\x89\x00"


@given(st.lists(st.integers(0, 20), max_size=6))
def test_an_exec_of_kubernetes_own_client_is_understood_however_it_is_cut(
    places: list[int],
) -> None:
    _, machine = pair(V5, ALL)
    events = in_pieces(machine, recorded.EXEC_WEBSOCKET_V5, places)
    assert events == [StdinData(b"hi\n"), StdinEnd()]
