"""SPDY whose bytes travel as the payload of binary WebSocket messages: port-forward's newer form.

Rules: where messages begin and end means nothing. What ends one of the two protocols ends the other: GOAWAY is followed
by a close, and a close by the session's end.

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
    from cri_shim.streaming.wire.spdy_events import SpdyEvent


class TunnelledSpdyConnection(SpdyConnection):
    """One end of a SPDY session in a WebSocket: the server's, unless it has mask keys."""

    def __init__(
        self,
        *,
        mask_key: Callable[[], bytes] | None = None,
        max_streams: int = DEFAULT_MAX_STREAMS,
    ) -> None:
        super().__init__(client=mask_key is not None, max_streams=max_streams)
        self._websocket = WebSocketConnection(mask_key=mask_key)

    def receive_data(self, data: Buffer) -> list[SpdyEvent]:
        """What these bytes of the peer mean; never raises. The last event of a session is `SessionEnded`."""
        events: list[SpdyEvent] = []
        for event in self._websocket.receive_data(data):
            if isinstance(event, MessageData):
                if event.is_text:
                    self._websocket.close(
                        CloseCode.UNSUPPORTED_DATA, "SPDY comes in binary messages"
                    )
                    events += self.end_session("SPDY in a text message")
                    break
                events += super().receive_data(event.data)
            elif isinstance(event, WebSocketClosed):
                events += self.end_session(event.error)
        return events

    def receive_eof(self) -> list[SpdyEvent]:
        """The peer will send no more: the session is over."""
        events = super().receive_eof()
        self._websocket.receive_eof()
        return events

    def data_to_send(self) -> list[Buffer]:
        """What to send next, in this order; each buffer is given out once."""
        frames = super().data_to_send()
        if frames:
            self._websocket.send_message(frames)
        if self.has_ended and not self._websocket.is_closing:
            self._websocket.close(CloseCode.NORMAL)
        return self._websocket.data_to_send()
