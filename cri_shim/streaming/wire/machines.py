"""The machine for what was negotiated."""

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
    """The machine of an exec or attach."""
    if upgrade.framing is Framing.SPDY:
        return SpdyRemoteCommand(upgrade.protocol, streams)
    return ChannelRemoteCommand(upgrade.protocol, streams)


def port_forward(upgrade: Upgrade, ports: Sequence[int], share: Share | None = None) -> PortForward:
    """The machine of a port-forward; the ports of the request count for channels only, `share` bounds SPDY's streams.

    Raises: ProtocolError if channels can't carry these ports: ask before the 101 is sent.
    """
    if upgrade.framing is Framing.CHANNELS:
        return ChannelPortForward(upgrade.protocol, ports)
    tunnelled = upgrade.framing is Framing.TUNNEL
    session = TunnelledSpdyConnection if tunnelled else SpdyConnection
    return SpdyPortForward(session(share=share))
