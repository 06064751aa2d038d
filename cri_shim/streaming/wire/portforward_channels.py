"""Port-forward over the channels of a WebSocket: channel 2n has the nth port's data, 2n + 1 its error.

Rules: the ports are fixed by the request, with one connection each, and there is no half-close: where the target is
done, the connection is, and with the last one the session.
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
"""Two channels each, and 255 is no channel."""


class ChannelPortForward:
    """Port-forward over the channels of a WebSocket: channel 2n has port n's data, 2n + 1 its error.

    Raises: ProtocolError if there are no ports, or more than channels.
    """

    def __init__(self, protocol: str, ports: Sequence[int]) -> None:
        limit = MAX_BASE64_CHANNELS // 2 if protocol == V4_BASE64 else MAX_PORTS
        if not 0 < len(ports) <= limit:
            raise ProtocolError(
                f"{len(ports)} ports: a port-forward over {protocol} names 1 to {limit} in the request"
            )
        self._ports = tuple(ports)
        self._channels = ChannelConnection(protocol)
        self._open = dict.fromkeys(range(len(ports)))

    @property
    def open_connections(self) -> int:
        """Connections that aren't over."""
        return len(self._open)

    @property
    def half_open(self) -> Collection[str]:
        """None: all channels are there from the start."""
        return ()

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is to be sent than what `data_to_send` has."""
        return self._channels.is_closing

    @property
    def has_more(self) -> bool:
        """Whether something that came was not looked at yet: see `turn`."""
        return self._channels.has_more

    def start(self) -> list[PortForwardEvent]:
        """Begin, right behind the 101: each channel's first message is its port, in little endian."""
        events: list[PortForwardEvent] = []
        for connection_id, port in enumerate(self._ports):
            for channel in (2 * connection_id, 2 * connection_id + 1):
                self._channels.send(channel, port.to_bytes(2, "little"))
            events.append(ConnectionOpened(connection_id, port))
        return events

    def receive_data(self, data: Buffer) -> list[PortForwardEvent]:
        """What these bytes of the client mean; never raises."""
        return self._interpret(self._channels.receive_data(data))

    def receive_eof(self) -> list[PortForwardEvent]:
        """The client will send no more."""
        return self._interpret(self._channels.receive_eof())

    def data_to_send(self) -> list[Buffer]:
        """What to send next, in this order; each buffer is given out once."""
        return self._channels.data_to_send()

    def send(self, connection_id: int, data: Buffer) -> int:
        """Send what the target said; all is taken."""
        if connection_id in self._open and len(data):
            self._channels.send(2 * connection_id, data)
        return len(data)

    def room(self, connection_id: int, wanted: int) -> int:
        """How much of so many bytes `send` would take: all."""
        return wanted

    def end(self, connection_id: int) -> None:
        """The target has no more to say: the connection is over."""
        self.complete(connection_id)

    def complete(self, connection_id: int) -> None:
        """The connection is over; with the last one, the session."""
        if connection_id in self._open:
            del self._open[connection_id]
            if not self._open:
                self._channels.close()

    def fail(self, connection_id: int, message: str) -> None:
        """The connection can't be made or kept: the client is told why."""
        if connection_id in self._open:
            text = message[:MAX_ERROR_CHARACTERS].encode("utf-8", "replace")
            self._channels.send(2 * connection_id + 1, text)
            self.complete(connection_id)

    def reset(self, connection_id: int) -> None:
        """The target reset the connection: it is over, for channels can't say more."""
        self.complete(connection_id)

    def consumed(self, connection_id: int, n_bytes: int) -> None:
        """So many bytes were given to the target: channels don't count."""

    def expire(self, request_id: str) -> None:
        """No pair of channels is ever waited for."""

    def ping(self) -> None:
        """Keep the connection alive where something between would end it."""
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
