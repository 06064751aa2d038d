"""SPDY as the payload of binary WebSocket messages: the newer form of port-forward.

Rules: message boundaries mean nothing. The end of one protocol ends the other: a GOAWAY is followed by a close frame,
and a close frame ends the session.

KEP-4006.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.streaming.wire.spdy import DEFAULT_MAX_STREAMS, SpdyConnection
from cri_shim.streaming.wire.websocket import (
    CloseCode,
    MessageData,
    WebSocketClosed,
    WebSocketConnection,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.shares import Share
    from cri_shim.streaming.wire.spdy_events import SpdyEvent


class TunnelledSpdyConnection(SpdyConnection):
    """One end of a SPDY session in a WebSocket: the server's, unless `mask_key` is given."""

    def __init__(
        self,
        *,
        mask_key: Callable[[], bytes] | None = None,
        max_streams: int = DEFAULT_MAX_STREAMS,
        share: Share | None = None,
    ) -> None:
        super().__init__(client=mask_key is not None, max_streams=max_streams, share=share)
        self._websocket = WebSocketConnection(mask_key=mask_key)
        self._closed: WebSocketClosed | None = None
        """The WebSocket's end, which ends the session after everything received before it."""

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait for another turn."""
        return super().has_more or (not self.has_ended and self._websocket.has_more)

    def receive_data(self, data: Buffer) -> list[SpdyEvent]:
        """Turn bytes from the peer into events. Never raises. The last event of a session is `SessionEnded`."""
        self._turn.begin()
        payload, is_text = self._unwrap(data)
        events = self._feed(payload)
        if is_text:
            events += self.end_session("SPDY in a text message")
        elif self._closed is not None and not super().has_more:
            events += self.end_session(self._closed.error)
        return events

    def _unwrap(self, data: Buffer) -> tuple[Buffer, bool]:
        """The payload of the messages, and whether a text message followed it."""
        pieces: list[Buffer] = []
        is_text = False
        # While SPDY has bytes that wait for a turn, unwrap no more: the waiting bytes would grow, and be copied.
        events = self._websocket.receive_data(data) if len(data) or not super().has_more else ()
        for event in events:
            if isinstance(event, WebSocketClosed):
                self._closed = event
            elif isinstance(event, MessageData):
                if event.is_text:
                    self._websocket.close(
                        CloseCode.UNSUPPORTED_DATA, "SPDY comes in binary messages"
                    )
                    is_text = True
                    break
                pieces.append(event.data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), is_text

    def receive_eof(self) -> list[SpdyEvent]:
        """The peer has closed its side of the connection: the session is over."""
        events = super().receive_eof()
        self._websocket.receive_eof()
        return events

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""
        frames = super().data_to_send()
        if frames:
            self._websocket.send_message(frames)
        if self.has_ended and not self._websocket.is_closing:
            self._websocket.close(CloseCode.NORMAL)
        return self._websocket.data_to_send()
