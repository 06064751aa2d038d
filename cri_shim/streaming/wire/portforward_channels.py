"""Port-forward over WebSocket channels: channel 2n carries the nth port's data, channel 2n + 1 its error.

Rules: the request fixes the ports, with one connection each. There is no half-close: a connection ends when its target
does, and the session with the last connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.streaming.wire.channels import (
    MAX_BASE64_CHANNELS,
    ChannelConnection,
    ChannelData,
    ConnectionEnded,
)
from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.portforward import (
    MAX_ERROR_CHARACTERS,
    Closed,
    ConnectionData,
    ConnectionOpened,
    PortForwardEvent,
)
from cri_shim.streaming.wire.upgrade import V4_BASE64

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.channels import ChannelEvent

MAX_PORTS = 127
"""Each port takes two channels, and 255 is reserved."""


class ChannelPortForward:
    """Port-forward over WebSocket channels.

    Raises: ProtocolError if there are no ports, or too many for the channels.
    """

    def __init__(self, protocol: str, ports: Sequence[int]) -> None:
        limit = MAX_BASE64_CHANNELS // 2 if protocol == V4_BASE64 else MAX_PORTS
        if not 0 < len(ports) <= limit:
            raise ProtocolError(
                f"{len(ports)} ports: a port-forward over {protocol} needs 1 to {limit} in the request"
            )
        self._ports = tuple(ports)
        self._channels = ChannelConnection(protocol)
        self._open = dict.fromkeys(range(len(ports)))

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._open)

    @property
    def half_open(self) -> Collection[str]:
        """The request IDs of pairs that lack one stream: always none, since all channels exist."""
        return ()

    @property
    def is_finished(self) -> bool:
        """Whether `data_to_send` returns the last bytes of the session."""
        return self._channels.is_closing

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait for another turn (`turn`)."""
        return self._channels.has_more

    def start(self) -> list[PortForwardEvent]:
        """Begin the session, right after the 101 response. Each channel's first message is its port, little-endian."""
        events: list[PortForwardEvent] = []
        for connection_id, port in enumerate(self._ports):
            for channel in (2 * connection_id, 2 * connection_id + 1):
                self._channels.send(channel, port.to_bytes(2, "little"))
            events.append(ConnectionOpened(connection_id, port))
        return events

    def receive_data(self, data: Buffer) -> list[PortForwardEvent]:
        """Turn bytes from the client into events. Never raises."""
        return self._interpret(self._channels.receive_data(data))

    def receive_eof(self) -> list[PortForwardEvent]:
        """The client has closed its side of the connection."""
        return self._interpret(self._channels.receive_eof())

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""
        return self._channels.data_to_send()

    def send(self, connection_id: int, data: Buffer) -> int:
        """Send the target's bytes; takes all of them."""
        if connection_id in self._open and len(data):
            self._channels.send(2 * connection_id, data)
        return len(data)

    def room(self, connection_id: int, wanted: int) -> int:
        """How many of `wanted` bytes `send` would take: all, since channels have no windows."""
        return wanted

    def end(self, connection_id: int) -> None:
        """The target has ended its direction, which ends the connection."""
        self.complete(connection_id)

    def complete(self, connection_id: int) -> None:
        """End a connection; with the last one, the session."""
        if connection_id in self._open:
            del self._open[connection_id]
            if not self._open:
                self._channels.close()

    def fail(self, connection_id: int, message: str) -> None:
        """Close a connection that failed, and send the client the reason."""
        if connection_id in self._open:
            text = message[:MAX_ERROR_CHARACTERS].encode("utf-8", "replace")
            self._channels.send(2 * connection_id + 1, text)
            self.complete(connection_id)

    def reset(self, connection_id: int) -> None:
        """End a connection that the target reset. Channels can't tell the client more."""
        self.complete(connection_id)

    def consumed(self, connection_id: int, n_bytes: int) -> None:
        """The target has taken this many bytes. Channels have no windows, so nothing happens."""

    def expire(self, request_id: str) -> None:
        """Do nothing: no pair of channels is ever waited for."""

    def ping(self) -> None:
        """Send a ping, so that no proxy on the way closes the connection as idle."""
        self._channels.ping()

    def close(self) -> None:
        """End the session."""
        self._open.clear()
        self._channels.close()

    def _interpret(self, channel_events: Iterable[ChannelEvent]) -> list[PortForwardEvent]:
        events: list[PortForwardEvent] = []
        for event in channel_events:
            if isinstance(event, ConnectionEnded):
                self._open.clear()
                events.append(Closed(event.error))
            elif isinstance(event, ChannelData):
                connection_id, is_error = divmod(event.channel, 2)
                if connection_id in self._open and not is_error:
                    events.append(ConnectionData(connection_id, event.data))
        return events
