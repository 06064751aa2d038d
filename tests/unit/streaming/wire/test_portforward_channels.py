"""Port-forward over the channels of a WebSocket: a pair for each port of the request."""

from __future__ import annotations

import pytest

from cri_shim.streaming.wire.channels import ChannelConnection, ChannelData, ConnectionEnded
from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.portforward import Closed, ConnectionData, ConnectionOpened
from cri_shim.streaming.wire.portforward_channels import ChannelPortForward
from cri_shim.streaming.wire.upgrade import V4, V4_BASE64
from cri_shim.streaming.wire.websocket import WebSocketConnection
from tests.unit.streaming.wire.roleplay import RandomKeys, deliver, sent

PROTOCOLS = [V4, V4_BASE64]


def pair(protocol: str, *ports: int) -> tuple[ChannelConnection, ChannelPortForward]:
    """A client and a machine that has begun and said its ports."""
    client = ChannelConnection(protocol, WebSocketConnection(mask_key=RandomKeys()))
    machine = ChannelPortForward(protocol, ports)
    assert machine.start() == [ConnectionOpened(i, port) for i, port in enumerate(ports)]
    announced = [
        (2 * i + k, port.to_bytes(2, "little")) for i, port in enumerate(ports) for k in (0, 1)
    ]
    assert deliver(machine, client) == [ChannelData(*each) for each in announced]
    return client, machine


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_port_has_its_channels_which_begin_with_its_number(protocol: str) -> None:
    client, machine = pair(protocol, 80, 0x1234, 65535)
    client.send(2, b"ask")
    client.send(3, b"on the error channel")
    client.send(6, b"on no channel")
    assert deliver(client, machine) == [ConnectionData(1, b"ask")]
    assert machine.send(1, b"answer") == 6
    assert deliver(machine, client) == [ChannelData(2, b"answer")]
    machine.consumed(1, 3)
    machine.expire("x")
    machine.ping()
    assert sent(machine) == b"\x89\x00"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_session_ends_with_its_last_connection(protocol: str) -> None:
    client, machine = pair(protocol, 80, 81, 82)
    machine.fail(1, "refused")
    machine.fail(1, "again")
    assert deliver(machine, client) == [ChannelData(3, b"refused")]
    client.send(2, b"late")
    assert deliver(client, machine) == []
    assert machine.send(1, b"late") == 4
    machine.end(0)
    assert (machine.open_connections, machine.is_finished) == (1, False)
    machine.reset(2)
    assert (machine.open_connections, machine.is_finished) == (0, True)
    assert deliver(machine, client) == [ConnectionEnded(None)]
    assert deliver(client, machine) == [Closed(None)]


def test_what_is_said_to_a_connection_that_is_over_goes_nowhere() -> None:
    client, machine = pair(V4, 80, 81)
    machine.end(0)
    machine.end(0)
    machine.complete(7)
    assert machine.open_connections == 1
    client.ping()
    assert deliver(client, machine) == []


def test_closing_ends_the_session() -> None:
    client, machine = pair(V4, 80)
    machine.close()
    assert machine.open_connections == 0
    assert deliver(machine, client) == [ConnectionEnded(None)]


def test_a_client_that_hangs_up_is_gone() -> None:
    _, machine = pair(V4, 80)
    assert machine.receive_eof() == [Closed(None)]
    assert machine.open_connections == 0


@pytest.mark.parametrize(("protocol", "most"), [(V4, 127), (V4_BASE64, 40)])
def test_ports_are_as_many_as_there_are_channels(protocol: str, most: int) -> None:
    pair(protocol, *range(1, most + 1))
    for count in (0, most + 1):
        with pytest.raises(ProtocolError, match=f"{count} ports"):
            ChannelPortForward(protocol, range(1, count + 1))
