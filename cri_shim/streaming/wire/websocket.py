"""A WebSocket connection after its handshake, without its socket, for both roles.

Rules:
- A message's payload is emitted, unmasked, as it arrives. No frame and no message is collected, so both may have any
  length. At most a frame header or one control frame of 125 bytes is held back.
- Received frames are parsed only as far as a turn of the loop allows (`turn`).
- Pings are answered here. A close frame is answered here and ends the connection: after `WebSocketClosed` everything
  received is ignored.
- A protocol violation closes the connection with its status code (RFC 6455 §7.4.1). No extensions are supported.
- Text must be UTF-8 (§8.1).
- A client must mask its frames with unpredictable keys (§10.3); a caller in that role passes a source of keys.

RFC 6455 §5 for the frames.
"""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

try:
    from websockets.speedups import apply_mask
except ImportError:  # a build without its C part
    from websockets.utils import apply_mask

from cri_shim.streaming.wire.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.streaming.wire.buffers import Buffer

MAX_CONTROL_BYTES = 125
MAX_HEADER_BYTES = 14

_SHORT = struct.Struct(">BBH")
_LONG = struct.Struct(">BBQ")
_CODE = struct.Struct(">H")
_FIN = 0x80
_RESERVED = 0x70
_MASKED = 0x80


class Opcode(IntEnum):
    """The opcodes of frames (§5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Status codes (§7.4.1): those that we send, and the two for a close without a code."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    INTERNAL_ERROR = 1011


_CODES_ON_THE_WIRE = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})


@dataclass(
    slots=True
)  # not frozen: there is one per chunk, and frozen classes take three times as long to create
class MessageData:
    """A message, or the part of it that has arrived."""

    data: Buffer
    is_text: bool
    begins: bool
    ends: bool


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The echo of our ping."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class WebSocketClosed:
    """The connection is over. `code` is the peer's, or ours for a protocol violation, which `error` describes."""

    code: int
    reason: str
    error: str | None = None


WebSocketEvent: TypeAlias = MessageData | PongReceived | WebSocketClosed


class _ViolationError(Exception):
    def __init__(self, code: CloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class WebSocketConnection:
    """One end of a WebSocket: the server's, unless it has mask keys of four bytes each."""

    def __init__(self, *, mask_key: Callable[[], bytes] | None = None) -> None:
        self._mask_key = mask_key
        self._out: list[Buffer] = []
        self._events: list[WebSocketEvent] = []
        self._held = bytearray()
        """The start of an incomplete frame header or control frame."""
        self._turn = Turn()

        self._in_message = False
        self._begins = False
        """Whether nothing of the message was emitted yet."""
        self._decoder: codecs.IncrementalDecoder | None = None
        """Checks a text message's UTF-8; None for a binary message."""
        self._frame_left = 0
        self._frame_fin = False
        self._mask: bytes | None = None

        self._close_sent = False
        self._closed = False

    @property
    def is_closing(self) -> bool:
        """Whether we have sent a close frame."""
        return self._close_sent

    # --- bytes

    def receive_data(self, data: Buffer) -> list[WebSocketEvent]:
        """Turn bytes from the peer into events. Never raises. The last event is `WebSocketClosed`.

        If `has_more` is true afterwards, call it with no bytes in another turn of the loop.
        """
        turn = self._turn
        turn.begin()
        view = turn.take(data)
        try:
            while len(view) and not self._closed:
                if turn.left <= 0:
                    turn.leave(view)
                    break
                turn.left -= 1
                if self._frame_left:
                    size = min(self._frame_left, len(view))
                    self._take_payload(view[:size])
                    view = view[size:]
                elif self._held:
                    view = self._hold(view)
                else:
                    view = self._take_frame(view)
        except _ViolationError as e:
            self._fail(e.code, str(e))
        return self._take_events()

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait for another turn."""
        return self._turn.has_more

    def receive_eof(self) -> list[WebSocketEvent]:
        """The peer has closed its side of the connection."""
        if not self._closed:
            self._closed = True
            # Clients often hang up without a close frame. It is an error only if part of a message is lost.
            cut = self._in_message or self._held or self.has_more
            self._turn.forget()
            error = "the connection ended within a message" if cut else None
            self._events.append(WebSocketClosed(CloseCode.ABNORMAL, "", error))
        return self._take_events()

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""
        out, self._out = self._out, []
        return out

    # --- commands

    def send_message(
        self, parts: Sequence[Buffer], *, prefix: bytes = b"", text: bool = False
    ) -> None:
        """Send a message of one frame: `prefix`, then the parts. Dropped after a close."""
        self._send(Opcode.TEXT if text else Opcode.BINARY, parts, prefix)

    def ping(self, payload: bytes = b"") -> None:
        """Send a ping. Its echo is a `PongReceived`."""
        self._send(Opcode.PING, [payload[:MAX_CONTROL_BYTES]])

    def close(self, code: CloseCode = CloseCode.NORMAL, reason: str = "") -> None:
        """Send a close frame. The peer's answer is a `WebSocketClosed`."""
        text = reason.encode("utf-8")[: MAX_CONTROL_BYTES - _CODE.size]
        self._send(Opcode.CLOSE, [_CODE.pack(code) + text.decode("utf-8", "ignore").encode()])
        self._close_sent = True

    # --- frames in

    def _hold(self, view: memoryview) -> memoryview:
        """Collect a frame header, then the control frame after it. Returns the bytes that are left."""
        before = len(self._held)
        self._held += view[: MAX_HEADER_BYTES + MAX_CONTROL_BYTES - before]
        held = memoryview(bytes(self._held))
        self._held.clear()
        rest = self._take_frame(held)
        if self._held:
            return view[len(view) :]
        return view[len(held) - len(rest) - before :]

    def _take_frame(self, view: memoryview) -> memoryview:
        """Begin a data frame, handle a complete control frame, or hold an incomplete one. Returns the bytes left."""
        start = self._header_length(view)
        if len(view) < start:
            self._held += view
            return view[len(view) :]
        first, second = view[0], view[1]
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(view[2:4], "big")
        elif length == 127:
            length = int.from_bytes(view[2:10], "big")
            if length >> 63:
                raise _ViolationError(CloseCode.PROTOCOL_ERROR, "a frame of more than 2^63 bytes")
        mask = bytes(view[start - 4 : start]) if second & _MASKED else None
        fin, opcode = bool(first & _FIN), first & 0x0F
        if opcode < Opcode.CLOSE:
            self._begin_frame(opcode, length, mask, fin=fin)
            return view[start:]
        if length > MAX_CONTROL_BYTES or not fin:
            raise _ViolationError(
                CloseCode.PROTOCOL_ERROR, "a control frame is fragmented or exceeds 125 bytes"
            )
        if len(view) < start + length:
            self._held += view
            return view[len(view) :]
        payload = bytes(view[start : start + length])
        self._take_control(opcode, apply_mask(payload, mask) if mask else payload)
        return view[start + length :]

    def _header_length(self, view: memoryview) -> int:
        if len(view) < 2:
            return 2
        first, second = view[0], view[1]
        if first & _RESERVED:
            raise _ViolationError(CloseCode.PROTOCOL_ERROR, "a reserved bit is set")
        if bool(second & _MASKED) != (self._mask_key is None):
            raise _ViolationError(
                CloseCode.PROTOCOL_ERROR, "clients must mask their frames, servers must not"
            )
        length = second & 0x7F
        return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (second & _MASKED) // 32

    def _begin_frame(self, opcode: int, length: int, mask: bytes | None, *, fin: bool) -> None:
        if opcode > Opcode.BINARY:
            raise _ViolationError(CloseCode.PROTOCOL_ERROR, f"unknown opcode {opcode}")
        if (opcode == Opcode.CONTINUATION) != self._in_message:
            raise _ViolationError(
                CloseCode.PROTOCOL_ERROR, "a message's fragments are out of order"
            )
        if opcode != Opcode.CONTINUATION:
            self._in_message = self._begins = True
            self._decoder = (
                codecs.getincrementaldecoder("utf-8")() if opcode == Opcode.TEXT else None
            )
        self._frame_left, self._frame_fin, self._mask = length, fin, mask
        if not length and fin:
            self._take_payload(memoryview(b""))

    def _take_payload(self, view: memoryview) -> None:
        size = len(view)
        self._frame_left -= size
        data: Buffer = view
        if self._mask is not None and size:
            data = apply_mask(view, self._mask)
            shift = size % 4
            self._mask = self._mask[shift:] + self._mask[:shift]
        ends = self._frame_fin and not self._frame_left
        if self._decoder is not None:
            try:
                self._decoder.decode(data, ends)
            except UnicodeDecodeError as e:
                raise _ViolationError(
                    CloseCode.INVALID_DATA, f"text that is not UTF-8: {e.reason}"
                ) from e
        is_text = self._decoder is not None
        self._events.append(MessageData(data, is_text, self._begins, ends))
        self._begins = False
        self._in_message = not ends

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.PING:
            self._send(Opcode.PONG, [payload])
        elif opcode == Opcode.PONG:
            self._events.append(PongReceived(payload))
        elif opcode == Opcode.CLOSE:
            self._take_close(payload)
        else:
            raise _ViolationError(CloseCode.PROTOCOL_ERROR, f"unknown opcode {opcode}")

    def _take_close(self, payload: bytes) -> None:
        code, reason = int(CloseCode.NO_STATUS), ""
        if payload:
            if len(payload) < _CODE.size or _CODE.unpack_from(payload)[0] not in _CODES_ON_THE_WIRE:
                raise _ViolationError(CloseCode.PROTOCOL_ERROR, "a close without a valid code")
            (code,) = _CODE.unpack_from(payload)
            try:
                reason = payload[_CODE.size :].decode("utf-8")
            except UnicodeDecodeError as e:
                raise _ViolationError(
                    CloseCode.INVALID_DATA, "a close reason that is not UTF-8"
                ) from e
        self._send(Opcode.CLOSE, [payload[: _CODE.size]])
        self._close_sent = self._closed = True
        self._events.append(WebSocketClosed(code, reason))

    def _fail(self, code: CloseCode, message: str) -> None:
        self.close(code, message)
        self._closed = True
        self._held.clear()
        self._events.append(WebSocketClosed(code, "", message))

    def _take_events(self) -> list[WebSocketEvent]:
        events, self._events = self._events, []
        return events

    # --- frames out

    def _send(self, opcode: Opcode, parts: Sequence[Buffer], prefix: bytes = b"") -> None:
        if self._close_sent:
            return
        if self._mask_key is not None:
            mask = self._mask_key()
            payload = apply_mask(prefix + b"".join(parts), mask)
            self._out += (_frame_header(opcode, len(payload), _MASKED) + mask, payload)
            return
        size = len(prefix) + sum(map(len, parts))
        self._out.append(_frame_header(opcode, size, 0) + prefix)
        self._out += [part for part in parts if len(part)]


def _frame_header(opcode: Opcode, size: int, masked: int) -> bytes:
    if size < 126:
        return bytes((_FIN | opcode, masked | size))
    if size < 1 << 16:
        return _SHORT.pack(_FIN | opcode, masked | 126, size)
    return _LONG.pack(_FIN | opcode, masked | 127, size)
