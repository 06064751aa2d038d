"""Exec and attach over WebSocket channels, all of which exist from the start.

Rules: the client learns of the end of an output only with the end of the session. From v5 on, it can close stdin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.streaming.wire.channels import (
    ChannelConnection,
    ChannelData,
    ChannelEnded,
    ConnectionEnded,
)
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
)
from cri_shim.streaming.wire.terminal_size import TerminalSizeReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.channels import ChannelEvent
    from cri_shim.streaming.wire.outcome import Outcome


class ChannelRemoteCommand:
    """Exec or attach over WebSocket channels, in every version."""

    def __init__(self, protocol: str, streams: RequestedStreams) -> None:
        self._protocol = protocol
        self._streams = streams
        self._channels = ChannelConnection(protocol)
        self._outputs = {Channel.STDOUT: streams.stdout, Channel.STDERR: streams.stderr}
        self._stdin_ended = False
        self._sizes = TerminalSizeReader()
        self._is_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether `Ready` was emitted."""
        return self._is_ready

    @property
    def is_finished(self) -> bool:
        """Whether `data_to_send` returns the last bytes of the session."""
        return self._channels.is_closing

    @property
    def missing(self) -> list[str]:
        """The names of streams that the client has not opened yet: always none, since all channels exist."""
        return []

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait for another turn (`turn`)."""
        return self._channels.has_more

    def start(self) -> list[RemoteCommandEvent]:
        """Begin the session, right after the 101 response. Clients wait for a first message, which is empty."""
        self._is_ready = True
        outputs = [channel for channel, wanted in self._outputs.items() if wanted]
        self._channels.send((*outputs, Channel.ERROR)[0], b"")
        return [Ready()]

    def receive_data(self, data: Buffer) -> list[RemoteCommandEvent]:
        """Turn bytes from the client into events. Never raises."""
        return self._interpret(self._channels.receive_data(data))

    def receive_eof(self) -> list[RemoteCommandEvent]:
        """The client has closed its side of the connection."""
        return self._interpret(self._channels.receive_eof())

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""
        return self._channels.data_to_send()

    def send(self, channel: Channel, data: Buffer) -> int:
        """Send output; takes all of it."""
        if self._outputs.get(channel) and len(data):
            self._channels.send(channel, data)
        return len(data)

    def end(self, channel: Channel) -> None:
        """This output has ended. Channels can't tell the client."""
        self._outputs[channel] = False

    def consumed(self, n_bytes: int) -> None:
        """The command has taken this many bytes of stdin. Channels have no windows, so nothing happens."""

    def ping(self) -> None:
        """Send a ping, so that no proxy on the way closes the connection as idle."""
        self._channels.ping()

    def finish(self, outcome: Outcome) -> None:
        """Send the outcome, and end the session."""
        if not self._channels.is_closing:
            document = build_error_document(self._protocol, outcome)
            if document:
                self._channels.send(Channel.ERROR, document)
            self._channels.close()

    def _interpret(self, channel_events: Iterable[ChannelEvent]) -> list[RemoteCommandEvent]:
        events: list[RemoteCommandEvent] = []
        for event in channel_events:
            match event:
                case ConnectionEnded(error):
                    events.append(Closed(error))
                case _ if self._channels.is_closing:
                    pass
                case ChannelData(Channel.STDIN, data):
                    if self._streams.stdin and not self._stdin_ended:
                        events.append(StdinData(data))
                case ChannelData(Channel.RESIZE, data):
                    size = self._sizes.receive_data(data) if self._streams.tty else None
                    if size is not None:
                        events.append(Resized(size.width, size.height))
                case ChannelEnded(Channel.STDIN):
                    if self._streams.stdin and not self._stdin_ended:
                        self._stdin_ended = True
                        events.append(StdinEnd())
                case _:
                    pass  # a channel that only we write, or one that doesn't exist
        return events
