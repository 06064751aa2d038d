"""Create the machine of a negotiated protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.streaming.wire.portforward_channels import ChannelPortForward
from cri_shim.streaming.wire.portforward_spdy import SpdyPortForward
from cri_shim.streaming.wire.remotecommand_channels import ChannelRemoteCommand
from cri_shim.streaming.wire.remotecommand_spdy import SpdyRemoteCommand
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.tunnel import TunnelledSpdyConnection
from cri_shim.streaming.wire.upgrade import Framing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.streaming.wire.portforward import PortForward
    from cri_shim.streaming.wire.remotecommand import RemoteCommand, RequestedStreams
    from cri_shim.streaming.wire.shares import Share
    from cri_shim.streaming.wire.upgrade import Upgrade


def remote_command(upgrade: Upgrade, streams: RequestedStreams) -> RemoteCommand:
    """Create the machine of an exec or attach."""
    if upgrade.framing is Framing.SPDY:
        return SpdyRemoteCommand(upgrade.protocol, streams)
    return ChannelRemoteCommand(upgrade.protocol, streams)


def port_forward(upgrade: Upgrade, ports: Sequence[int], share: Share | None = None) -> PortForward:
    """Create the machine of a port-forward. Only channels need `ports`; `share` bounds the streams of SPDY.

    Raises: ProtocolError if channels can't carry these ports. Call it before the 101 response is sent.
    """
    if upgrade.framing is Framing.CHANNELS:
        return ChannelPortForward(upgrade.protocol, ports)
    tunnelled = upgrade.framing is Framing.TUNNEL
    session = TunnelledSpdyConnection if tunnelled else SpdyConnection
    return SpdyPortForward(session(share=share))
