"""Exec and attach over SPDY: the client opens a stream for each of the standard streams.

Rules:
- The session is ready when every stream that the request implies is open: error; stdin, stdout and stderr as requested;
  and, from v3 on, a resize stream for a terminal.
- An unexpected stream is accepted, so that no client waits for the reply, and closed. A second one of a kind is reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.streaming.wire.errors import StreamClosedError
from cri_shim.streaming.wire.outcome import build_error_document
from cri_shim.streaming.wire.remotecommand import (
    Channel,
    Closed,
    Ready,
    RemoteCommandEvent,
    RequestedStreams,
    Resized,
    StdinData,
    StdinEnd,
    Writable,
)
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    SessionEnded,
    StreamEnded,
    StreamOpened,
    StreamReset,
    StreamWritable,
)
from cri_shim.streaming.wire.spdy_frames import Reset
from cri_shim.streaming.wire.terminal_size import TerminalSizeReader
from cri_shim.streaming.wire.upgrade import V3, V4, V5

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.outcome import Outcome
    from cri_shim.streaming.wire.spdy_events import SpdyEvent

_WITH_RESIZE = (V3, V4, V5)
_CHANNELS = {channel.name.lower(): channel for channel in Channel}
"""By the value of the `streamtype` header."""


class SpdyRemoteCommand:
    """Exec or attach over SPDY, versions 1 to 5 (over SPDY, 5 is the same as 4)."""

    MAX_STREAMS = 16
    """The protocol has five kinds. Streams beyond this limit are refused."""

    def __init__(self, protocol: str, streams: RequestedStreams) -> None:
        self._protocol = protocol
        self._session = SpdyConnection(max_streams=self.MAX_STREAMS)
        self._wanted = _wanted(protocol, streams)
        self._ids: dict[Channel, int] = {}
        self._channels: dict[int, Channel] = {}
        """The open streams; `_ids` is the inverse."""
        self._seen: set[Channel] = set()
        self._sizes = TerminalSizeReader()
        self._is_ready = False
        self._document: Buffer | None = None
        """The part of the error document that is not sent yet; None before `finish`."""

    @property
    def is_ready(self) -> bool:
        """Whether `Ready` was emitted."""
        return self._is_ready

    @property
    def is_finished(self) -> bool:
        """Whether `data_to_send` returns the last bytes of the session."""
        return self._session.has_ended

    @property
    def missing(self) -> list[str]:
        """The names of the streams that the client has not opened yet."""
        return [channel.name.lower() for channel in sorted(self._wanted - self._seen)]

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait for another turn (`turn`)."""
        return self._session.has_more

    def start(self) -> list[RemoteCommandEvent]:
        """Begin the session, right after the 101 response. The client opens the streams."""
        return []

    def receive_data(self, data: Buffer) -> list[RemoteCommandEvent]:
        """Turn bytes from the client into events. Never raises."""
        return self._interpret(self._session.receive_data(data))

    def receive_eof(self) -> list[RemoteCommandEvent]:
        """The client has closed its side of the connection."""
        return self._interpret(self._session.receive_eof())

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""
        return self._session.data_to_send()

    def send(self, channel: Channel, data: Buffer) -> int:
        """Send output; returns how many bytes were taken. If not all, wait for `Writable`."""
        stream_id = self._ids.get(channel)
        if stream_id is None or self._document is not None:
            return len(data)
        try:
            return self._session.send_data(stream_id, data)
        except StreamClosedError:
            return len(data)

    def end(self, channel: Channel) -> None:
        """This output has ended."""
        if channel in self._ids:
            self._session.end(self._ids[channel])

    def consumed(self, n_bytes: int) -> None:
        """The command has taken this many bytes of stdin."""
        if Channel.STDIN in self._ids:
            self._session.consumed(self._ids[Channel.STDIN], n_bytes)

    def ping(self) -> None:
        """Send a ping, so that no proxy on the way closes the connection as idle."""
        self._session.ping()

    def finish(self, outcome: Outcome) -> None:
        """Send the outcome, and end the session."""
        if self._document is None:
            self._document = build_error_document(self._protocol, outcome)
            for channel in (Channel.STDOUT, Channel.STDERR):
                self.end(channel)
            self._send_document()

    def _send_document(self) -> None:
        document = self._document or b""
        if Channel.ERROR in self._ids and document:
            try:
                taken = self._session.send_data(self._ids[Channel.ERROR], document)
            except StreamClosedError:
                taken = len(document)
            self._document = document[taken:]
            if len(self._document):
                return  # the client's window is full: `StreamWritable` will call again
        for stream_id in self._channels:
            self._session.end(stream_id)
        self._session.close()

    def _interpret(self, spdy_events: Iterable[SpdyEvent]) -> list[RemoteCommandEvent]:
        events: list[RemoteCommandEvent] = []
        for event in spdy_events:
            match event:
                case DataReceived(stream_id, data):
                    self._take_data(stream_id, data, events)
                case StreamOpened(stream_id, headers):
                    self._take_stream(stream_id, headers.get("streamtype", ""), events)
                case StreamEnded(stream_id):
                    if self._channels.get(stream_id) is Channel.STDIN:
                        events.append(StdinEnd())
                case StreamReset(stream_id, _):
                    self._drop_stream(stream_id, events)
                case StreamWritable(stream_id):
                    self._go_on(stream_id, events)
                case SessionEnded(error):
                    events.append(Closed(error))
                case _:
                    pass  # PongReceived; GoAwayReceived, after which clients hang up
        return events if self._document is None else [e for e in events if isinstance(e, Closed)]

    def _take_stream(
        self, stream_id: int, stream_type: str, events: list[RemoteCommandEvent]
    ) -> None:
        channel = _CHANNELS.get(stream_type.partition("\0")[0])
        if channel in self._seen:
            self._session.reset(stream_id, Reset.PROTOCOL_ERROR)
            return
        self._session.accept(stream_id)
        if channel is None or channel not in self._wanted:
            self._session.end(stream_id)
            return
        self._seen.add(channel)
        self._ids[channel] = stream_id
        self._channels[stream_id] = channel
        if not self._is_ready and self._seen == self._wanted:
            self._is_ready = True
            events.append(Ready())

    def _take_data(self, stream_id: int, data: Buffer, events: list[RemoteCommandEvent]) -> None:
        channel = self._channels.get(stream_id)
        if channel is Channel.STDIN:
            events.append(StdinData(data))
            return
        self._session.consumed(stream_id, len(data))
        if channel is Channel.RESIZE:
            size = self._sizes.receive_data(data)
            if size is not None:
                events.append(Resized(size.width, size.height))

    def _drop_stream(self, stream_id: int, events: list[RemoteCommandEvent]) -> None:
        channel = self._channels.pop(stream_id, None)
        if channel is None:
            return
        del self._ids[channel]
        if channel is Channel.STDIN:
            events.append(StdinEnd())
        elif channel in (Channel.STDOUT, Channel.STDERR):
            events.append(Writable(channel))  # bytes that wait for this stream can now be dropped
        elif channel is Channel.ERROR and self._document is not None:
            self._send_document()

    def _go_on(self, stream_id: int, events: list[RemoteCommandEvent]) -> None:
        channel = self._channels.get(stream_id)
        if channel is Channel.ERROR:
            self._send_document()
        elif channel is not None:
            events.append(Writable(channel))


def _wanted(protocol: str, streams: RequestedStreams) -> frozenset[Channel]:
    wanted = {Channel.ERROR}
    wanted |= {Channel.STDIN} if streams.stdin else set()
    wanted |= {Channel.STDOUT} if streams.stdout else set()
    wanted |= {Channel.STDERR} if streams.stderr else set()
    wanted |= {Channel.RESIZE} if streams.tty and protocol in _WITH_RESIZE else set()
    return frozenset(wanted)
