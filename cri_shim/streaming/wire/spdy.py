"""A SPDY/3.1 connection without its socket, for either role.

Rules:
- A DATA frame's payload is handed out as it arrives, in views of the chunk: no frame is ever collected, so the length
  of a frame costs nothing. Held back are at most eight bytes of a frame header, or one control frame.
- What is wrong with one stream resets that stream; what is wrong with the framing or the compression ends the session
  with GOAWAY. DATA for a stream that is over is dropped in silence: it was on its way.
- The ids a peer opens must have its parity and should rise. One that doesn't is refused alone: old Go clients number
  streams under one lock and write them under another.
- Of what a peer sent at once, no more is looked at than a turn of the loop has time for (`turn`); the rest waits for
  the next call. Header blocks cost what they inflate to.
- Windows: see `spdy_flow`.

SPDY protocol draft 3.1: §2.2 framing, §2.3 streams, §2.4 errors. This file is as long as the list of its frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri_shim.streaming.wire import spdy_frames as frames
from cri_shim.streaming.wire.errors import ProtocolError, StreamClosedError
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    GoAwayReceived,
    PongReceived,
    SessionEnded,
    SpdyEvent,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    StreamReset,
    StreamWritable,
)
from cri_shim.streaming.wire.spdy_flow import FlowControl, Window
from cri_shim.streaming.wire.spdy_frames import FrameType, GoAway, HeaderCodec, Reset
from cri_shim.streaming.wire.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.shares import Share

DEFAULT_MAX_STREAMS: Final = 2048
"""Open at one time. A port-forward takes two for each connection."""
STREAM_COST: Final = 15
"""Of opening one, with all that comes of it, beyond that of a small frame; see `turn`."""
INFLATED_BYTES_A_FRAME: Final = 256
"""Header bytes that cost as much as a small frame."""
MAX_DATA_BYTES: Final = 256 << 10
"""The longest DATA frame we send: Go's peers allocate it whole before they read it."""

_NO_HEADERS: Mapping[str, str] = {}
_SKIP = -1  # the id that the payload of a control frame we don't know counts for


@dataclass(slots=True)
class _Stream:
    window: Window = field(default_factory=Window)
    local_closed: bool = False
    remote_closed: bool = False


class SpdyConnection:
    """One end of a SPDY session: the server's, unless `client`."""

    def __init__(
        self,
        *,
        client: bool = False,
        max_streams: int = DEFAULT_MAX_STREAMS,
        share: Share | None = None,
    ) -> None:
        """`share`: what else bounds the streams of the peer."""
        self._max_streams = max_streams
        self._share = share
        self._turn = Turn()
        self._codec = HeaderCodec()
        self._flow = FlowControl()
        self._streams: dict[int, _Stream] = {}
        self._blocked: set[int] = set()
        """Streams on which a send took less than it was given."""
        self._windows_moved = False
        self._next_id = 1 if client else 2
        self._next_ping_id = self._next_id
        self._last_peer_id = 0
        self._out: list[Buffer] = []
        self._events: list[SpdyEvent] = []
        self._gone_away = False
        self._ended = False

        self._held = bytearray()
        """The beginning of a frame header or of a control frame."""
        self._payload_left = 0
        """Bytes of the DATA frame, or of the frame to skip, that are still to come."""
        self._payload_id = _SKIP
        """The stream they belong to."""
        self._payload_fin = False

    # --- bytes

    def receive_data(self, data: Buffer) -> list[SpdyEvent]:
        """What these bytes of the peer mean; never raises. The last event of a session is `SessionEnded`.

        While there is more than a turn has time for, `has_more`: call again in another, with nothing new.
        """
        self._turn.begin()
        return self._feed(data)

    @property
    def has_more(self) -> bool:
        """Whether something that came was not looked at yet."""
        return self._turn.has_more

    def _feed(self, data: Buffer) -> list[SpdyEvent]:
        if self._ended:
            return []
        turn = self._turn
        view = turn.take(data)
        position, end = 0, len(view)
        try:
            while position < end and turn.left > 0:
                turn.left -= 1
                if self._payload_left:
                    size = min(self._payload_left, end - position)
                    self._take_payload(view[position : position + size])
                    position += size
                elif self._held or end - position < frames.FRAME_HEADER_BYTES:
                    position += self._hold(view[position:])
                else:
                    position += self._take_frame(view[position:])
            if position < end:
                turn.leave(view[position:])
        except ProtocolError as e:
            self._send_go_away(GoAway.PROTOCOL_ERROR)
            self._end(str(e))
        if self._windows_moved:
            self._unblock()
        return self._take_events()

    def receive_eof(self) -> list[SpdyEvent]:
        """The peer will send no more: the session is over."""
        if not self._ended:
            cut = self._held or self._payload_left or self.has_more
            self._end("the connection ended within a frame" if cut else None)
        return self._take_events()

    def data_to_send(self) -> list[Buffer]:
        """What to send next, in this order; each buffer is given out once."""
        out, self._out = self._out, []
        return out

    # --- commands

    @property
    def open_streams(self) -> int:
        """Streams that aren't over in both directions."""
        return len(self._streams)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is sent or received."""
        return self._ended

    def open_stream(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Open a stream; its id. The peer's `StreamReplied` or `StreamReset` follows.

        Raises: StreamClosedError if the session takes no more streams.
        """
        stream_id = self._next_id
        if self._ended or self._gone_away or stream_id > frames.MAX_STREAM_ID:
            raise StreamClosedError("the session takes no more streams")
        self._next_id += 2
        self._streams[stream_id] = _Stream(local_closed=fin)
        payload = frames.WORDS.pack(stream_id, 0) + b"\0\0" + self._codec.compress(headers)
        self._send_control(FrameType.SYN_STREAM, payload, frames.FLAG_FIN if fin else 0)
        return stream_id

    def accept(self, stream_id: int) -> None:
        """Reply to a stream the peer opened, first of all: Go's peers drop what comes before the reply.

        A stream that is gone stays as it is: the peer may have reset it in the same breath.
        """
        if stream_id in self._streams:
            payload = frames.WORD.pack(stream_id) + self._codec.compress(_NO_HEADERS)
            self._send_control(FrameType.SYN_REPLY, payload)

    def send_data(self, stream_id: int, data: Buffer, *, fin: bool = False) -> int:
        """Send on a stream; how many bytes were taken: all, unless the peer's windows are full.

        With less taken, `fin` waits too: send the rest after `StreamWritable`.

        Raises: StreamClosedError if our half is closed or the stream gone.
        """
        stream = self._writable(stream_id)
        wanted = len(data)
        size = self._flow.limit(stream.window, wanted)
        self._flow.sent(stream.window, size)
        if size < wanted:
            self._blocked.add(stream_id)
            fin = False
        if size == wanted <= MAX_DATA_BYTES:
            if size or fin:
                self._out.append(frames.data_header(stream_id, size, fin=fin))
            if size:
                self._out.append(data)
        else:
            view = memoryview(data)
            for start in range(0, size, MAX_DATA_BYTES):
                piece = view[start : min(start + MAX_DATA_BYTES, size)]
                last = fin and start + MAX_DATA_BYTES >= size
                self._out += (frames.data_header(stream_id, len(piece), fin=last), piece)
        if fin:
            stream.local_closed = True
            self._forget_if_over(stream_id, stream)
        return size

    def room(self, stream_id: int, wanted: int) -> int:
        """How much of so many bytes a send would take; after none, `StreamWritable` says when it would take some."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_closed:
            return wanted
        room = self._flow.limit(stream.window, wanted)
        if not room:
            self._blocked.add(stream_id)
        return room

    def end(self, stream_id: int) -> None:
        """Close our half of a stream. A stream whose half is closed, or that is gone, stays as it is."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.local_closed:
            self.send_data(stream_id, b"", fin=True)

    def reset(self, stream_id: int, status: Reset = Reset.CANCEL) -> None:
        """End a stream in both directions at once; one that is gone stays as it is."""
        if stream_id in self._streams:
            self._send_reset(stream_id, status)
            self._forget(stream_id)

    def consumed(self, stream_id: int, n_bytes: int) -> None:
        """The application is done with so many bytes of a stream: a peer that counts may send more."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # what it had received was given back when it went
        self._flow.consumed(stream.window, n_bytes)
        if not stream.remote_closed:
            self._grant(stream_id, stream.window)
        self._grant(0, self._flow.session)

    def ping(self) -> int:
        """Ask for an echo, which comes as `PongReceived` with this id."""
        ping_id = self._next_ping_id
        self._next_ping_id = (ping_id + 2) & frames.MAX_STREAM_ID or 2
        self._send_control(FrameType.PING, frames.WORD.pack(ping_id))
        return ping_id

    def go_away(self, status: GoAway = GoAway.OK) -> None:
        """Take no more streams from the peer; those that are open go on."""
        if not self._gone_away and not self._ended:
            self._send_go_away(status)

    def close(self, status: GoAway = GoAway.OK) -> None:
        """End the session with a GOAWAY behind all that was sent; what still comes is ignored."""
        if not self._ended:
            self._send_go_away(status)
            self._ended = True
            self._release()

    def end_session(self, error: str | None) -> list[SpdyEvent]:
        """The carrier of the bytes is gone, or was misused: no frame can be sent any more."""
        if not self._ended:
            self._end(error)
        return self._take_events()

    # --- frames in

    def _hold(self, view: memoryview) -> int:
        """Collect a frame header, then the control frame behind it; how many bytes were taken."""
        wanted = frames.FRAME_HEADER_BYTES
        if len(self._held) >= wanted:
            wanted += int.from_bytes(self._held[5:8], "big")
        taken = int(wanted - len(self._held))
        self._held += view[:taken]
        if len(self._held) < wanted:
            return len(view)
        held = memoryview(bytes(self._held))
        self._held.clear()
        self._take_frame(held)
        return taken

    def _take_frame(self, view: memoryview) -> int:
        """Begin a DATA frame, do a whole control frame, or hold what there is of one; the bytes taken."""
        first, second = frames.two_words_at(view)
        flags, length = second >> 24, second & 0xFFFFFF
        if not first & 0x80000000:
            self._begin_data(first, flags, length)
            return frames.FRAME_HEADER_BYTES
        version = first >> 16 & 0x7FFF
        if version != frames.VERSION:
            raise ProtocolError(f"a control frame of version {version}, not {frames.VERSION}")
        handler = _HANDLERS.get(first & 0xFFFF)
        if handler is None:
            self._payload_left, self._payload_id = length, _SKIP
            return frames.FRAME_HEADER_BYTES
        if length > frames.MAX_CONTROL_BYTES:
            raise ProtocolError(f"a control frame of {length} bytes")
        end = frames.FRAME_HEADER_BYTES + length
        if len(view) < end:
            self._held += view
            return len(view)
        handler(self, view[frames.FRAME_HEADER_BYTES : end], flags)
        return end

    def _begin_data(self, stream_id: int, flags: int, length: int) -> None:
        stream = self._streams.get(stream_id)
        self._payload_left, self._payload_id = length, stream_id
        self._payload_fin = bool(flags & frames.FLAG_FIN)
        if stream is None:
            if not stream_id:
                raise ProtocolError("DATA on stream 0")
            if not self._was_opened(stream_id):
                self._send_reset(stream_id, Reset.INVALID_STREAM)
        elif stream.remote_closed:
            self._reset_for(stream_id, Reset.STREAM_ALREADY_CLOSED)
        elif not length and self._payload_fin:
            self._end_remote(stream_id, stream)

    def _take_payload(self, payload: memoryview) -> None:
        size = len(payload)
        self._payload_left -= size
        stream_id = self._payload_id
        stream = self._streams.get(stream_id)
        if stream is not None:
            if self._flow.received(stream.window, size):
                self._windows_moved = True
            self._events.append(DataReceived(stream_id, payload))
            if self._payload_fin and not self._payload_left:
                self._end_remote(stream_id, stream)
        elif stream_id != _SKIP:
            self._flow.received_for_nobody(size)
            self._grant(0, self._flow.session)

    def _on_syn_stream(self, payload: memoryview, flags: int) -> None:
        if len(payload) < 10:
            raise ProtocolError("SYN_STREAM: too short")
        stream_id = frames.stream_id(payload)
        block = self._inflate(payload[10:])
        if not stream_id or not self._is_peers(stream_id):
            raise ProtocolError(f"SYN_STREAM: {stream_id} is not an id of the peer's")
        if stream_id in self._streams:
            self._reset_for(stream_id, Reset.PROTOCOL_ERROR)
        elif self._gone_away:
            pass  # §2.6.6: ignored; the GOAWAY tells which streams were taken
        elif stream_id <= self._last_peer_id:
            self._send_reset(stream_id, Reset.PROTOCOL_ERROR)
        else:
            self._last_peer_id = stream_id
            self._admit(stream_id, block, flags)

    def _inflate(self, compressed: memoryview) -> bytes:
        block = self._codec.inflate(compressed)
        self._turn.left -= len(block) // INFLATED_BYTES_A_FRAME
        return block

    def _admit(self, stream_id: int, block: bytes, flags: int) -> None:
        self._turn.left -= STREAM_COST
        if len(self._streams) >= self._max_streams or flags & frames.FLAG_UNIDIRECTIONAL:
            self._send_reset(stream_id, Reset.REFUSED_STREAM)
            return
        try:
            headers = frames.parse_headers(block)
        except ProtocolError:
            self._send_reset(stream_id, Reset.PROTOCOL_ERROR)
            return
        if self._share is not None and not self._share.take():
            self._send_reset(stream_id, Reset.REFUSED_STREAM)
            return
        stream = self._streams[stream_id] = _Stream()
        self._events.append(StreamOpened(stream_id, headers))
        if flags & frames.FLAG_FIN:
            self._end_remote(stream_id, stream)

    def _on_syn_reply(self, payload: memoryview, flags: int) -> None:
        self._take_headers("SYN_REPLY", payload, flags, reply=True)

    def _on_headers(self, payload: memoryview, flags: int) -> None:
        # our protocols put nothing in HEADERS; its compression and FLAG_FIN must be followed all the same
        self._take_headers("HEADERS", payload, flags, reply=False)

    def _take_headers(self, name: str, payload: memoryview, flags: int, *, reply: bool) -> None:
        if len(payload) < 4:
            raise ProtocolError(f"{name}: too short")
        stream_id = frames.stream_id(payload)
        block = self._inflate(payload[4:])
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.remote_closed:
            self._reset_for(stream_id, Reset.STREAM_ALREADY_CLOSED)
            return
        try:
            headers = frames.parse_headers(block)
        except ProtocolError:
            self._reset_for(stream_id, Reset.PROTOCOL_ERROR)
            return
        if reply:
            self._events.append(StreamReplied(stream_id, headers))
        if flags & frames.FLAG_FIN:
            self._end_remote(stream_id, stream)

    def _on_rst_stream(self, payload: memoryview, _flags: int) -> None:
        stream_id, status = frames.two_words("RST_STREAM", payload)
        if stream_id in self._streams:
            self._forget(stream_id)
            self._events.append(StreamReset(stream_id, status))

    def _on_settings(self, payload: memoryview, _flags: int) -> None:
        for setting, value in frames.settings(payload):
            if setting == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                self._flow.set_initial(value)
                self._windows_moved = True

    def _on_ping(self, payload: memoryview, _flags: int) -> None:
        if len(payload) != 4:
            raise ProtocolError("PING: not 4 bytes")
        (ping_id,) = frames.WORD.unpack(payload)
        if ping_id % 2 == self._next_ping_id % 2:
            self._events.append(PongReceived(ping_id))
        else:
            self._send_control(FrameType.PING, bytes(payload))

    def _on_go_away(self, payload: memoryview, _flags: int) -> None:
        self._events.append(GoAwayReceived(*frames.two_words("GOAWAY", payload)))

    def _on_window_update(self, payload: memoryview, _flags: int) -> None:
        stream_id, delta = frames.two_words("WINDOW_UPDATE", payload)
        delta &= frames.MAX_STREAM_ID
        self._windows_moved = True
        stream = self._streams.get(stream_id)
        if stream is not None:
            if not self._flow.widened(stream.window, delta):
                self._reset_for(stream_id, Reset.FLOW_CONTROL_ERROR)
        elif not stream_id and not self._flow.session_widened(delta):
            raise ProtocolError("WINDOW_UPDATE: the session's window is too large")

    # --- states

    def _writable(self, stream_id: int) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_closed:
            raise StreamClosedError(f"stream {stream_id} is closed for sending")
        return stream

    def _is_peers(self, stream_id: int) -> bool:
        return stream_id % 2 != self._next_id % 2

    def _was_opened(self, stream_id: int) -> bool:
        if not self._is_peers(stream_id):
            return stream_id < self._next_id
        return stream_id <= self._last_peer_id or self._gone_away

    def _end_remote(self, stream_id: int, stream: _Stream) -> None:
        stream.remote_closed = True
        self._events.append(StreamEnded(stream_id))
        self._forget_if_over(stream_id, stream)

    def _forget_if_over(self, stream_id: int, stream: _Stream) -> None:
        if stream.local_closed and stream.remote_closed:
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        window = self._streams.pop(stream_id).window
        if self._share is not None and self._is_peers(stream_id):
            self._share.give()
        self._blocked.discard(stream_id)
        self._flow.consumed(window, window.received)
        self._grant(0, self._flow.session)

    def _reset_for(self, stream_id: int, status: Reset) -> None:
        """Reset a stream for what the peer did to it."""
        self.reset(stream_id, status)
        self._events.append(StreamReset(stream_id, status))

    def _unblock(self) -> None:
        """Once a chunk, not once a frame: what it costs grows with the streams."""
        self._windows_moved = False
        for stream_id in sorted(self._blocked):
            if self._flow.limit(self._streams[stream_id].window, 1):
                self._blocked.discard(stream_id)
                self._events.append(StreamWritable(stream_id))

    def _grant(self, stream_id: int, window: Window) -> None:
        delta = self._flow.grant(window)
        if delta:
            self._send_control(FrameType.WINDOW_UPDATE, frames.WORDS.pack(stream_id, delta))

    def _end(self, error: str | None) -> None:
        self._ended = True
        self._release()
        self._events.append(SessionEnded(error))

    def _release(self) -> None:
        if self._share is not None:
            self._share.close()
        self._turn.forget()
        self._streams.clear()
        self._blocked.clear()
        self._held.clear()

    def _take_events(self) -> list[SpdyEvent]:
        events, self._events = self._events, []
        return events

    # --- frames out

    def _send_control(self, type_: FrameType, payload: bytes, flags: int = 0) -> None:
        if not self._ended:
            self._out.append(frames.control_frame(type_, payload, flags))

    def _send_reset(self, stream_id: int, status: Reset) -> None:
        self._send_control(FrameType.RST_STREAM, frames.WORDS.pack(stream_id, status))

    def _send_go_away(self, status: GoAway) -> None:
        self._gone_away = True
        self._send_control(FrameType.GOAWAY, frames.WORDS.pack(self._last_peer_id, status))


_HANDLERS: dict[int, Callable[[SpdyConnection, memoryview, int], None]] = {
    FrameType.SYN_STREAM: SpdyConnection._on_syn_stream,
    FrameType.SYN_REPLY: SpdyConnection._on_syn_reply,
    FrameType.RST_STREAM: SpdyConnection._on_rst_stream,
    FrameType.SETTINGS: SpdyConnection._on_settings,
    FrameType.PING: SpdyConnection._on_ping,
    FrameType.GOAWAY: SpdyConnection._on_go_away,
    FrameType.HEADERS: SpdyConnection._on_headers,
    FrameType.WINDOW_UPDATE: SpdyConnection._on_window_update,
}
