"""Kubernetes' channels over WebSocket: each message begins with the number of its channel.

Rules:
- `channel.k8s.io` and its versions: one byte with the number, then the data, in binary messages.
- `base64.channel.k8s.io` and its versions: the number as a character, counted from '0', then base64, in text messages.
  Line ends in it are skipped, as by Go's decoder. Other characters outside base64 close the connection.
- Incoming messages may be text or binary, whatever was negotiated. Go's servers don't check, and clients rely on that.
- Channels that the negotiated protocol doesn't have are ignored.
- From v5 on, a message on channel 255 names a channel whose sender is done: the half-close that WebSocket lacks.
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
"""The characters from '0' up to the last but one of ASCII."""

_LINE_ENDS = b"\r\n"
_NONE = -1


@dataclass(slots=True)
class ChannelData:
    """Bytes on a channel."""

    channel: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    """The peer has closed its direction of a channel."""

    channel: int


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """The connection has ended; `error` is the reason if something went wrong."""

    error: str | None


ChannelEvent: TypeAlias = ChannelData | ChannelEnded | ConnectionEnded


class ChannelConnection:
    """One end of a WebSocket's channels, for one subprotocol."""

    def __init__(self, protocol: str, websocket: WebSocketConnection | None = None) -> None:
        self._websocket = websocket or WebSocketConnection()
        self._base64 = protocol in (V1_BASE64, V4_BASE64)
        self._has_close_signal = protocol == V5
        self._channel: int | None = None
        """The channel of the incoming message."""
        self._quantum = b""
        """Up to three characters of base64 that lack their fourth."""
        self._padded = False
        """Whether the message's base64 has reached its padding."""
        self._ended = False

    @property
    def is_closing(self) -> bool:
        """Whether we have sent a close frame."""
        return self._websocket.is_closing

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait for another turn (`turn`)."""
        return not self._ended and self._websocket.has_more

    def receive_data(self, data: Buffer) -> list[ChannelEvent]:
        """Turn bytes from the peer into events. Never raises. The last event is `ConnectionEnded`."""
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
        """The peer has closed its side of the connection."""
        events: list[ChannelEvent] = []
        for event in self._websocket.receive_eof():
            if isinstance(event, WebSocketClosed) and not self._ended:
                self._end(_closing_error(event), events)
        return events

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order."""
        return self._websocket.data_to_send()

    def send(self, channel: int, data: Buffer) -> None:
        """Send a message on a channel. An empty one tells the client that the channel exists."""
        if self._base64:
            encoded = binascii.b2a_base64(data, newline=False)
            self._websocket.send_message([encoded], prefix=b"%c" % (ord("0") + channel), text=True)
        else:
            self._websocket.send_message([data], prefix=b"%c" % channel)

    def end(self, channel: int) -> None:
        """Half-close a channel (v5). Only clients do so: Kubernetes' clients don't expect it of a server."""
        self._websocket.send_message([b"%c" % channel], prefix=b"%c" % CLOSE_SIGNAL)

    def ping(self) -> None:
        """Send a ping, so that no proxy on the way closes the connection as idle."""
        self._websocket.ping()

    def close(self, code: CloseCode = CloseCode.NORMAL, reason: str = "") -> None:
        """Send a close frame. Nothing can be sent after it."""
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
            # Only the channel's number has arrived; the data follows.
            if not len(data) and not message.ends:
                return
        if self._channel is None or self._channel < 0:
            return  # an empty message, or the rest of one on no valid channel
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
            raise binascii.Error("characters after the padding")
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
    return f"the client closed the connection with code {event.code} {quoted(event.reason)}"
