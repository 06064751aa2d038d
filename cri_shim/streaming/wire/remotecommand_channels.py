"""Exec and attach over the channels of a WebSocket, which are all there from the start.

Rules: a client hears of the end of an output only with the end of the session; from v5 on it can end stdin.
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
    """Exec or attach over the channels of a WebSocket, any version."""

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
        """Whether `Ready` was said."""
        return self._is_ready

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is to be sent than what `data_to_send` has."""
        return self._channels.is_closing

    @property
    def missing(self) -> list[str]:
        """The streams that the client has still to make: channels are all there."""
        return []

    @property
    def has_more(self) -> bool:
        """Whether something that came was not looked at yet: see `turn`."""
        return self._channels.has_more

    def start(self) -> list[RemoteCommandEvent]:
        """Begin, right behind the 101: clients wait for a first message, which is empty."""
        self._is_ready = True
        outputs = [channel for channel, wanted in self._outputs.items() if wanted]
        self._channels.send((*outputs, Channel.ERROR)[0], b"")
        return [Ready()]

    def receive_data(self, data: Buffer) -> list[RemoteCommandEvent]:
        """What these bytes of the client mean; never raises."""
        return self._interpret(self._channels.receive_data(data))

    def receive_eof(self) -> list[RemoteCommandEvent]:
        """The client will send no more."""
        return self._interpret(self._channels.receive_eof())

    def data_to_send(self) -> list[Buffer]:
        """What to send next, in this order; each buffer is given out once."""
        return self._channels.data_to_send()

    def send(self, channel: Channel, data: Buffer) -> int:
        """Send output; all is taken."""
        if self._outputs.get(channel) and len(data):
            self._channels.send(channel, data)
        return len(data)

    def end(self, channel: Channel) -> None:
        """There will be no more of this output; channels have no way to say so to a client."""
        self._outputs[channel] = False

    def consumed(self, n_bytes: int) -> None:
        """So many bytes of stdin were given to the command: channels don't count."""

    def ping(self) -> None:
        """Keep the connection alive where something between would end it."""
        self._channels.ping()

    def finish(self, outcome: Outcome) -> None:
        """Say how it ended, and end the session."""
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
                    pass  # a channel that is ours to write, or none
        return events
