"""A SPDY/3.1 connection without its socket, for both roles.

Rules:
- The payload of a DATA frame is emitted as it arrives, as views of the received chunk. No frame is collected, so a
  frame may have any length. At most a frame header of eight bytes or one control frame is held back.
- An error of one stream resets that stream. An error of framing or compression ends the session with GOAWAY. DATA for a
  stream that is over is dropped silently: it was on its way.
- The IDs of streams that the peer opens must have its parity and should rise. An ID that doesn't rise is refused alone:
  old Go clients take IDs under one lock and send the frames under another.
- Received bytes are parsed only as far as a turn of the loop allows (`turn`); the rest waits for the next call. Header
  blocks count by their inflated size.
- `spdy_flow` has the rules of the windows.

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
"""Open streams. A port-forward uses two per connection."""
STREAM_COST: Final = 15
"""The cost of opening a stream, with everything that follows, beyond that of a small frame (`turn`)."""
INFLATED_BYTES_A_FRAME: Final = 256
"""The size of a header block that costs as much as a small frame."""
MAX_DATA_BYTES: Final = 256 << 10
"""The longest DATA frame that we send. Go's peers allocate the whole frame before they read it."""

_NO_HEADERS: Mapping[str, str] = {}
_SKIP = -1  # the stream ID of a payload that is skipped: an unknown control frame's


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
        """`share` is a limit on the peer's streams beyond `max_streams`."""
        self._max_streams = max_streams
        self._share = share
        self._turn = Turn()
        self._codec = HeaderCodec()
        self._flow = FlowControl()
        self._streams: dict[int, _Stream] = {}
        self._blocked: set[int] = set()
        """Streams that wait for their window to open."""
        self._windows_moved = False
        self._next_id = 1 if client else 2
        self._next_ping_id = self._next_id
        self._last_peer_id = 0
        self._out: list[Buffer] = []
        self._events: list[SpdyEvent] = []
        self._gone_away = False
        self._ended = False

        self._held = bytearray()
        """The start of an incomplete frame header or control frame."""
        self._payload_left = 0
        """The rest of the current DATA frame, or of the frame that is skipped, in bytes."""
        self._payload_id = _SKIP
        """The stream of the current DATA frame."""
        self._payload_fin = False

    # --- bytes

    def receive_data(self, data: Buffer) -> list[SpdyEvent]:
        """Turn bytes from the peer into events. Never raises. The last event of a session is `SessionEnded`.

        If `has_more` is true afterwards, call it with no bytes in another turn of the loop.
        """
        self._turn.begin()
        return self._feed(data)

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait for another turn."""
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
        """The peer has closed its side of the connection: the session is over."""
        if not self._ended:
            cut = self._held or self._payload_left or self.has_more
            self._end("the connection ended within a frame" if cut else None)
        return self._take_events()

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""
        out, self._out = self._out, []
        return out

    # --- commands

    @property
    def open_streams(self) -> int:
        """The number of streams that are not over in both directions."""
        return len(self._streams)

    @property
    def has_ended(self) -> bool:
        """Whether the session has ended."""
        return self._ended

    def open_stream(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Open a stream and return its ID. The peer answers with `StreamReplied` or `StreamReset`.

        Raises: StreamClosedError if the session accepts no more streams.
        """
        stream_id = self._next_id
        if self._ended or self._gone_away or stream_id > frames.MAX_STREAM_ID:
            raise StreamClosedError("the session accepts no more streams")
        self._next_id += 2
        self._streams[stream_id] = _Stream(local_closed=fin)
        payload = frames.WORDS.pack(stream_id, 0) + b"\0\0" + self._codec.compress(headers)
        self._send_control(FrameType.SYN_STREAM, payload, frames.FLAG_FIN if fin else 0)
        return stream_id

    def accept(self, stream_id: int) -> None:
        """Reply to a stream that the peer opened. Do it first: Go's peers drop what arrives before the reply.

        Does nothing if the stream is gone: the peer may have reset it in the same chunk.
        """
        if stream_id in self._streams:
            payload = frames.WORD.pack(stream_id) + self._codec.compress(_NO_HEADERS)
            self._send_control(FrameType.SYN_REPLY, payload)

    def send_data(self, stream_id: int, data: Buffer, *, fin: bool = False) -> int:
        """Send on a stream. Returns how many bytes were taken: all, unless the peer's windows are full.

        If not all were taken, `fin` was not sent either. Send the rest after `StreamWritable`.

        Raises: StreamClosedError if our half is closed or the stream is gone.
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
        """How many of `wanted` bytes a send would take. After 0, `StreamWritable` follows."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_closed:
            return wanted
        room = self._flow.limit(stream.window, wanted)
        if not room:
            self._blocked.add(stream_id)
        return room

    def end(self, stream_id: int) -> None:
        """Close our half of a stream. Does nothing if it is closed or the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.local_closed:
            self.send_data(stream_id, b"", fin=True)

    def reset(self, stream_id: int, status: Reset = Reset.CANCEL) -> None:
        """End a stream in both directions at once. Does nothing if it is gone."""
        if stream_id in self._streams:
            self._send_reset(stream_id, status)
            self._forget(stream_id)

    def consumed(self, stream_id: int, n_bytes: int) -> None:
        """The application has consumed bytes of a stream: a peer with windows may send more."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # `_forget` has accounted for everything the stream had received
        self._flow.consumed(stream.window, n_bytes)
        if not stream.remote_closed:
            self._grant(stream_id, stream.window)
        self._grant(0, self._flow.session)

    def ping(self) -> int:
        """Send a PING and return its ID. Its echo is a `PongReceived`."""
        ping_id = self._next_ping_id
        self._next_ping_id = (ping_id + 2) & frames.MAX_STREAM_ID or 2
        self._send_control(FrameType.PING, frames.WORD.pack(ping_id))
        return ping_id

    def go_away(self, status: GoAway = GoAway.OK) -> None:
        """Accept no more streams from the peer. Open ones go on."""
        if not self._gone_away and not self._ended:
            self._send_go_away(status)

    def close(self, status: GoAway = GoAway.OK) -> None:
        """End the session with a GOAWAY after everything sent so far. Later bytes are ignored."""
        if not self._ended:
            self._send_go_away(status)
            self._ended = True
            self._release()

    def end_session(self, error: str | None) -> list[SpdyEvent]:
        """End the session without a frame, since its carrier is gone or was misused."""
        if not self._ended:
            self._end(error)
        return self._take_events()

    # --- frames in

    def _hold(self, view: memoryview) -> int:
        """Collect a frame header, then the control frame after it. Returns how many bytes were taken."""
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
        """Begin a DATA frame, handle a complete control frame, or hold an incomplete one. Returns the bytes taken."""
        first, second = frames.two_words_at(view)
        flags, length = second >> 24, second & 0xFFFFFF
        if not first & 0x80000000:
            self._begin_data(first, flags, length)
            return frames.FRAME_HEADER_BYTES
        version = first >> 16 & 0x7FFF
        if version != frames.VERSION:
            raise ProtocolError(f"control frame of SPDY version {version}, not {frames.VERSION}")
        handler = _HANDLERS.get(first & 0xFFFF)
        if handler is None:
            self._payload_left, self._payload_id = length, _SKIP
            return frames.FRAME_HEADER_BYTES
        if length > frames.MAX_CONTROL_BYTES:
            raise ProtocolError(
                f"control frame of {length} bytes; the limit is {frames.MAX_CONTROL_BYTES}"
            )
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
        # Before any check: a block that is skipped would put the shared compression context out of step.
        block = self._inflate(payload[10:])
        if not stream_id or not self._is_peers(stream_id):
            raise ProtocolError(
                f"SYN_STREAM: stream ID {stream_id} is not one that the peer may use"
            )
        if stream_id in self._streams:
            self._reset_for(stream_id, Reset.PROTOCOL_ERROR)
        elif self._gone_away:
            pass  # ignored (§2.6.6): our GOAWAY told the peer which streams were accepted
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
        # Kubernetes' protocols don't use HEADERS, but its compression state and FLAG_FIN must be processed.
        self._take_headers("HEADERS", payload, flags, reply=False)

    def _take_headers(self, name: str, payload: memoryview, flags: int, *, reply: bool) -> None:
        if len(payload) < 4:
            raise ProtocolError(f"{name}: too short")
        stream_id = frames.stream_id(payload)
        # Also for a stream that is gone, for the same reason as in SYN_STREAM.
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
            raise ProtocolError(f"PING: payload of {len(payload)} bytes instead of 4")
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
            raise ProtocolError("WINDOW_UPDATE: the session's window exceeds 2^31 - 1")

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
        """Reset a stream because of the peer's error, and report it as an event too."""
        self.reset(stream_id, status)
        self._events.append(StreamReset(stream_id, status))

    def _unblock(self) -> None:
        """Report streams with room. Called once per chunk, not per frame: its cost grows with the streams."""
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
