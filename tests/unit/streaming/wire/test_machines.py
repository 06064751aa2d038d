"""What was negotiated decides which machine it is."""

from __future__ import annotations

import pytest

from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.machines import port_forward, remote_command
from cri_shim.streaming.wire.portforward_channels import ChannelPortForward
from cri_shim.streaming.wire.portforward_spdy import SpdyPortForward
from cri_shim.streaming.wire.remotecommand import RequestedStreams
from cri_shim.streaming.wire.remotecommand_channels import ChannelRemoteCommand
from cri_shim.streaming.wire.remotecommand_spdy import SpdyRemoteCommand
from cri_shim.streaming.wire.upgrade import PORT_FORWARD, PORT_FORWARD_TUNNEL, V4, Framing, Upgrade
from tests.unit.streaming.wire.roleplay import sent


def test_a_remote_command_goes_over_spdy_or_channels() -> None:
    streams = RequestedStreams(stdin=True, stdout=True, stderr=False, tty=False)
    over_spdy = remote_command(Upgrade(Framing.SPDY, V4, b""), streams)
    assert isinstance(over_spdy, SpdyRemoteCommand)
    over_channels = remote_command(Upgrade(Framing.CHANNELS, V4, b""), streams)
    assert isinstance(over_channels, ChannelRemoteCommand)


def test_a_port_forward_goes_over_spdy_a_tunnel_or_channels() -> None:
    plain = port_forward(Upgrade(Framing.SPDY, PORT_FORWARD, b""), [])
    tunnelled = port_forward(Upgrade(Framing.TUNNEL, PORT_FORWARD_TUNNEL, b""), [])
    channels = port_forward(Upgrade(Framing.CHANNELS, V4, b""), [80])
    assert isinstance(plain, SpdyPortForward)
    assert isinstance(tunnelled, SpdyPortForward)
    assert isinstance(channels, ChannelPortForward)
    for machine in (plain, tunnelled):
        machine.close()
    assert sent(plain)[:1] == b"\x80"
    assert sent(tunnelled)[:1] == b"\x82"


def test_channels_need_the_ports_of_the_request() -> None:
    with pytest.raises(ProtocolError, match="0 ports"):
        port_forward(Upgrade(Framing.CHANNELS, V4, b""), [])


def test_a_terminal_has_no_stderr() -> None:
    assert not RequestedStreams(stdin=True, stdout=True, stderr=True, tty=True).stderr
    assert RequestedStreams(stdin=True, stdout=True, stderr=True, tty=False).stderr
