"""The frames of a ttrpc connection, without a socket.

Rules:
- A frame is a head of ten bytes and a body: its length and the stream's number, four bytes each, then its type and its
  flags. Numbers are big-endian. A client's streams have odd numbers.
- A body has at most 4 MiB. A longer one is passed over and reported as `TooLong`, so that its sender can be told; no
  more than one body is ever kept.
- Any bytes give frames. What makes no sense is the receiver's to refuse.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

MAX_BODY_BYTES: Final = 4 << 20
REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3
_HEAD: Final = struct.Struct(">IIBB")


class MessageTooLongError(ValueError):
    """A body beyond `MAX_BODY_BYTES` was to be sent."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame."""

    stream: int
    type: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class TooLong:
    """A frame whose body was passed over."""

    stream: int
    type: int
    length: int


def encode(frame: Frame) -> bytes:
    """The frame's bytes. Raises MessageTooLongError."""
    if len(frame.body) > MAX_BODY_BYTES:
        raise MessageTooLongError(
            f"a ttrpc message of {len(frame.body)} bytes: at most {MAX_BODY_BYTES} may be sent"
        )
    return _HEAD.pack(len(frame.body), frame.stream, frame.type, frame.flags) + frame.body


class Decoder:
    """Cuts received bytes into frames."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._passing_over = 0

    @property
    def kept_bytes(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._kept)

    def receive_data(self, data: bytes) -> list[Frame | TooLong]:
        """The frames that `data` completes, in order."""
        frames: list[Frame | TooLong] = []
        if self._passing_over:
            over = min(self._passing_over, len(data))
            self._passing_over -= over
            data = data[over:]
        self._kept += data
        start = 0
        while len(self._kept) - start >= _HEAD.size:
            length, stream, kind, flags = _HEAD.unpack_from(self._kept, start)
            body = start + _HEAD.size
            if length > MAX_BODY_BYTES:
                frames.append(TooLong(stream, kind, length))
                there = min(length, len(self._kept) - body)
                self._passing_over = length - there
                start = body + there
                continue
            if len(self._kept) - body < length:
                break
            frames.append(Frame(stream, kind, flags, bytes(self._kept[body : body + length])))
            start = body + length
        del self._kept[:start]
        return frames
