"""Port-forward over SPDY, plain or tunnelled: two streams per connection, one for data and one for its error.

Rules:
- `requestid` pairs the two streams. Clients too old for that header open the data stream right after the error stream.
  Data that arrives before the pair is complete is kept, within a limit. The server decides how long to wait for the
  second stream (`PairBegun`, `expire`).
- An error of a connection resets its streams, and nothing else.
- Clients read the error stream to its end before they release a connection. So it is closed whenever the data stream is
  over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cri_shim.streaming.wire.errors import StreamClosedError
from cri_shim.streaming.wire.portforward import (
    MAX_ERROR_CHARACTERS,
    Closed,
    ConnectionData,
    ConnectionEnd,
    ConnectionOpened,
    ConnectionReset,
    ConnectionWritable,
    PairBegun,
    PortForwardEvent,
)
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    SessionEnded,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamWritable,
)
from cri_shim.streaming.wire.spdy_frames import Reset

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.spdy import SpdyConnection
    from cri_shim.streaming.wire.spdy_events import SpdyEvent

MAX_EARLY_BYTES = 64 << 10
"""Data of all streams whose error stream is missing."""
MAX_REQUEST_ID_CHARACTERS = 128


@dataclass(slots=True)
class _Pair:
    """A connection's two streams. The data stream's ID becomes the connection's."""

    request_id: str
    port: int
    data_id: int | None = None
    error_id: int | None = None
    early: bytearray = field(default_factory=bytearray)
    """Data that arrived before the error stream."""
    client_ended: bool = False
    target_ended: bool = False


class SpdyPortForward:
    """Port-forward over SPDY, plain or tunnelled."""

    def __init__(self, session: SpdyConnection) -> None:
        self._session = session
        self._pairs: dict[str, _Pair] = {}
        """Pairs that lack one stream, by request ID."""
        self._connections: dict[int, _Pair] = {}
        """Complete pairs, by data stream."""
        self._by_stream: dict[int, _Pair] = {}
        """Both of these, by each of their streams."""
        self._early_bytes = 0

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    @property
    def streams(self) -> int:
        """The number of streams that belong to a connection, whole or half open."""
        return len(self._by_stream)

    @property
    def half_open(self) -> Collection[str]:
        """The request IDs of pairs that lack one stream."""
        return self._pairs.keys()

    @property
    def is_finished(self) -> bool:
        """Whether `data_to_send` returns the last bytes of the session."""
        return self._session.has_ended

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait for another turn (`turn`)."""
        return self._session.has_more

    def start(self) -> list[PortForwardEvent]:
        """Begin the session, right after the 101 response. The client opens the streams."""
        return []

    def receive_data(self, data: Buffer) -> list[PortForwardEvent]:
        """Turn bytes from the client into events. Never raises."""
        return self._interpret(self._session.receive_data(data))

    def receive_eof(self) -> list[PortForwardEvent]:
        """The client has closed its side of the connection."""
        return self._interpret(self._session.receive_eof())

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""
        return self._session.data_to_send()

    def send(self, connection_id: int, data: Buffer) -> int:
        """Send the target's bytes; returns how many were taken. If not all, wait for `ConnectionWritable`."""
        try:
            return self._session.send_data(connection_id, data)
        except StreamClosedError:
            return len(data)

    def room(self, connection_id: int, wanted: int) -> int:
        """How many of `wanted` bytes `send` would take. After 0, `ConnectionWritable` follows."""
        return self._session.room(connection_id, wanted)

    def end(self, connection_id: int) -> None:
        """The target has closed its direction: half-close."""
        pair = self._connections.get(connection_id)
        if pair is not None:
            pair.target_ended = True
            self._session.end(connection_id)
            if pair.client_ended:
                self._release(pair)

    def complete(self, connection_id: int) -> None:
        """End a connection that has ended normally in both directions."""
        self.end(connection_id)
        self.reset(connection_id)  # does nothing if the client has closed its direction as well

    def fail(self, connection_id: int, message: str) -> None:
        """Close a connection that failed, and send the client the reason."""
        pair = self._connections.get(connection_id)
        if pair is not None:
            self._fail(pair, message)

    def reset(self, connection_id: int) -> None:
        """Reset a connection that the target reset."""
        pair = self._connections.get(connection_id)
        if pair is not None:
            self._session.reset(connection_id)
            self._release(pair)

    def consumed(self, connection_id: int, n_bytes: int) -> None:
        """The target has taken this many bytes."""
        self._session.consumed(connection_id, n_bytes)

    def expire(self, request_id: str) -> None:
        """Fail a pair whose other stream did not arrive in time. Does nothing if it has arrived."""
        pair = self._pairs.get(request_id)
        if pair is not None:
            self._fail(pair, f"timed out waiting for the other stream of request {request_id}")

    def ping(self) -> None:
        """Send a ping, so that no proxy on the way closes the connection as idle."""
        self._session.ping()

    def close(self) -> None:
        """End the session."""
        for stream_id in self._by_stream:
            self._session.end(stream_id)
        self._session.close()
        self._forget_all()

    def _interpret(self, spdy_events: Iterable[SpdyEvent]) -> list[PortForwardEvent]:
        events: list[PortForwardEvent] = []
        for event in spdy_events:
            match event:
                case DataReceived(stream_id, data):
                    self._take_data(stream_id, data, events)
                case StreamOpened(stream_id, headers):
                    self._take_stream(stream_id, headers, events)
                case StreamEnded(stream_id):
                    self._take_end(stream_id, events)
                case StreamReset(stream_id, _):
                    self._drop_stream(stream_id, events)
                case StreamWritable(stream_id):
                    if stream_id in self._connections:
                        events.append(ConnectionWritable(stream_id))
                case SessionEnded(error):
                    self._forget_all()
                    events.append(Closed(error))
                case _:
                    pass  # PongReceived; GoAwayReceived, after which clients hang up
        return events

    def _take_stream(
        self, stream_id: int, headers: Mapping[str, str], events: list[PortForwardEvent]
    ) -> None:
        stream_type, port, request_id = (
            headers.get(name, "").partition("\0")[0] for name in ("streamtype", "port", "requestid")
        )
        number = parse_port(port)
        if stream_type not in ("data", "error") or number is None:
            self._session.reset(stream_id, Reset.PROTOCOL_ERROR)
            return
        if not request_id:
            # An old client: error stream first, then its data stream with the next ID (clients use odd ones).
            request_id = str(stream_id if stream_type == "error" else stream_id - 2)
        pair = self._pairs.get(request_id)
        is_data = stream_type == "data"
        if len(request_id) > MAX_REQUEST_ID_CHARACTERS or (
            pair is not None and (pair.data_id if is_data else pair.error_id) is not None
        ):
            self._session.reset(stream_id, Reset.PROTOCOL_ERROR)
            return
        self._session.accept(stream_id)
        if pair is None:
            pair = self._pairs[request_id] = _Pair(request_id, number)
            events.append(PairBegun(request_id))
        self._by_stream[stream_id] = pair
        if is_data:
            pair.data_id = stream_id
        else:
            pair.error_id = stream_id
        if pair.port != number:
            self._fail(pair, f"request {request_id} names two ports, {pair.port} and {number}")
        elif pair.data_id is not None and pair.error_id is not None:
            self._open(pair, pair.data_id, events)

    def _open(self, pair: _Pair, data_id: int, events: list[PortForwardEvent]) -> None:
        del self._pairs[pair.request_id]
        self._connections[data_id] = pair
        events.append(ConnectionOpened(data_id, pair.port, pair.request_id))
        if pair.early:
            self._early_bytes -= len(pair.early)
            events.append(ConnectionData(data_id, bytes(pair.early)))
            pair.early.clear()
        if pair.client_ended:
            events.append(ConnectionEnd(data_id))

    def _take_data(self, stream_id: int, data: Buffer, events: list[PortForwardEvent]) -> None:
        if stream_id in self._connections:
            events.append(ConnectionData(stream_id, data))
            return
        pair = self._by_stream.get(stream_id)
        if pair is None or stream_id != pair.data_id:
            self._session.consumed(stream_id, len(data))
        elif self._early_bytes + len(data) > MAX_EARLY_BYTES:
            self._fail(pair, "too much data before the error stream")
        else:
            self._early_bytes += len(data)
            pair.early += data

    def _take_end(self, stream_id: int, events: list[PortForwardEvent]) -> None:
        pair = self._by_stream.get(stream_id)
        if pair is None or stream_id != pair.data_id:
            return  # the error stream: clients close their direction of it at once
        pair.client_ended = True
        if stream_id in self._connections:
            events.append(ConnectionEnd(stream_id))
            if pair.target_ended:
                self._release(pair)

    def _drop_stream(self, stream_id: int, events: list[PortForwardEvent]) -> None:
        pair = self._by_stream.get(stream_id)
        if pair is None:
            return
        if stream_id == pair.data_id:
            if stream_id in self._connections:
                events.append(ConnectionReset(stream_id))
            self._release(pair)
        else:
            del self._by_stream[stream_id]  # without its error stream the connection still works

    def _fail(self, pair: _Pair, message: str) -> None:
        if pair.error_id in self._by_stream:
            try:
                text = message[:MAX_ERROR_CHARACTERS].encode("utf-8", "replace")
                self._session.send_data(pair.error_id, text)
            except StreamClosedError:
                pass  # the client closed the error stream; the data stream is reset all the same
        if pair.data_id is not None:
            self._session.reset(pair.data_id)
        self._release(pair)

    def _release(self, pair: _Pair) -> None:
        """Forget a connection, and close its error stream, which the client reads to the end."""
        for stream_id in (pair.data_id, pair.error_id):
            if stream_id is not None:
                self._session.end(stream_id)
                self._by_stream.pop(stream_id, None)
                self._connections.pop(stream_id, None)
        self._early_bytes -= len(pair.early)
        pair.early.clear()
        if self._pairs.get(pair.request_id) is pair:
            del self._pairs[pair.request_id]

    def _forget_all(self) -> None:
        self._pairs.clear()
        self._connections.clear()
        self._by_stream.clear()
        self._early_bytes = 0


def parse_port(text: str) -> int | None:
    """Parse a port: 1 to 65535 in plain digits; None for anything else."""
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        return None
    port = int(text)
    return port if 0 < port <= 0xFFFF else None
