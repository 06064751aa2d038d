"""Kubernetes' channels on a WebSocket: each message begins with the number of the stream that it belongs to.

Rules:
- `channel.k8s.io` and its versions: a byte with the number, then the bytes of the stream, in binary messages.
- `base64.channel.k8s.io` and its versions: the number as a character from '0' on, then base64, in text messages. Line
  ends within it are passed over, as Go's decoder does; anything else that isn't base64 closes the connection.
- Incoming messages may be of either kind whatever was agreed: Go's servers don't look, and clients rely on it.
- Channels that the protocol in use doesn't have are passed over.
- From v5 on, a message on channel 255 names a channel whose sender is done: half-close, which WebSocket has not.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cri_shim.quoting import quoted
from cri_shim.streaming.wire.upgrade import V1_BASE64, V4_BASE64, V5
from cri_shim.streaming.wire.websocket import (
    CloseCode,
    MessageData,
    WebSocketClosed,
    WebSocketConnection,
)

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer

CLOSE_SIGNAL = 255
MAX_BASE64_CHANNELS = 80
"""From '0' to the last ASCII character but one."""

_LINE_ENDS = b"\r\n"
_NONE = -1


@dataclass(slots=True)
class ChannelData:
    """Bytes on a channel."""

    channel: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    """The peer sends no more on a channel."""

    channel: int


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """Nothing more will come; `error` says what was wrong, if anything was."""

    error: str | None


ChannelEvent: TypeAlias = ChannelData | ChannelEnded | ConnectionEnded


class ChannelConnection:
    """One end of the channels of a WebSocket, as the subprotocol has them."""

    def __init__(self, protocol: str, websocket: WebSocketConnection | None = None) -> None:
        self._websocket = websocket or WebSocketConnection()
        self._base64 = protocol in (V1_BASE64, V4_BASE64)
        self._has_close_signal = protocol == V5
        self._channel: int | None = None
        """Of the message that is coming in."""
        self._quantum = b""
        """The up to three characters of base64 that wait for their fourth."""
        self._padded = False
        """The message's base64 came to its end."""
        self._ended = False

    @property
    def is_closing(self) -> bool:
        """Whether we said that we close."""
        return self._websocket.is_closing

    @property
    def has_more(self) -> bool:
        """Whether something that came was not looked at yet: see `turn`."""
        return not self._ended and self._websocket.has_more

    def receive_data(self, data: Buffer) -> list[ChannelEvent]:
        """What these bytes of the peer mean; never raises. The last event is `ConnectionEnded`."""
        events: list[ChannelEvent] = []
        if self._ended:
            return events
        for event in self._websocket.receive_data(data):
            if isinstance(event, MessageData):
                try:
                    self._take_message(event, events)
                except binascii.Error:
                    error = "a message that is not base64"
                    self._websocket.close(CloseCode.INVALID_DATA, error)
                    self._end(error, events)
                    break
            elif isinstance(event, WebSocketClosed):
                self._end(_closing_error(event), events)
        return events

    def receive_eof(self) -> list[ChannelEvent]:
        """The peer will send no more."""
        events: list[ChannelEvent] = []
        for event in self._websocket.receive_eof():
            if isinstance(event, WebSocketClosed) and not self._ended:
                self._end(_closing_error(event), events)
        return events

    def data_to_send(self) -> list[Buffer]:
        """What to send next, in this order."""
        return self._websocket.data_to_send()

    def send(self, channel: int, data: Buffer) -> None:
        """Send a message on a channel; an empty one tells the client that the channel is there."""
        if self._base64:
            encoded = binascii.b2a_base64(data, newline=False)
            self._websocket.send_message([encoded], prefix=b"%c" % (ord("0") + channel), text=True)
        else:
            self._websocket.send_message([data], prefix=b"%c" % channel)

    def end(self, channel: int) -> None:
        """Half-close a channel (v5, and a client's to do: those of Kubernetes don't expect it from a server)."""
        self._websocket.send_message([b"%c" % channel], prefix=b"%c" % CLOSE_SIGNAL)

    def ping(self) -> None:
        """Ask for an echo, so that what stands between keeps the connection."""
        self._websocket.ping()

    def close(self, code: CloseCode = CloseCode.NORMAL, reason: str = "") -> None:
        """Say that nothing more will be sent."""
        self._websocket.close(code, reason)

    def _end(self, error: str | None, events: list[ChannelEvent]) -> None:
        self._ended = True
        events.append(ConnectionEnded(error))

    def _take_message(self, message: MessageData, events: list[ChannelEvent]) -> None:
        data = message.data
        if message.begins:
            self._channel, self._quantum, self._padded = None, b"", False
        if self._channel is None and len(data):
            self._channel = data[0] - ord("0") if self._base64 else data[0]
            data = data[1:]
            if not len(data) and not message.ends:
                return
        if self._channel is None or self._channel < 0:
            return  # an empty message, or one that means nothing from here on
        if self._has_close_signal and self._channel == CLOSE_SIGNAL:
            if len(data):
                events.append(ChannelEnded(data[0]))
                self._channel = _NONE
            return
        if self._base64:
            data = self._decode(data, ends=message.ends)
        if len(data):
            events.append(ChannelData(self._channel, data))

    def _decode(self, data: Buffer, *, ends: bool) -> bytes:
        text = self._quantum + bytes(data).translate(None, _LINE_ENDS)
        if text and self._padded:
            raise binascii.Error("characters behind the padding")
        usable = len(text) & ~3
        self._quantum = text[usable:]
        if ends and self._quantum:
            raise binascii.Error("not a multiple of four characters")
        self._padded = text[:usable].endswith(b"=")
        return binascii.a2b_base64(text[:usable], strict_mode=True)


def _closing_error(event: WebSocketClosed) -> str | None:
    if event.error is not None:
        return event.error
    if event.code in (
        CloseCode.NORMAL,
        CloseCode.GOING_AWAY,
        CloseCode.NO_STATUS,
        CloseCode.ABNORMAL,
    ):
        return None
    return f"closed by the client with {event.code} {quoted(event.reason)}"
