"""What can happen on a SPDY connection, seen from one end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.streaming.wire.buffers import Buffer


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream: accept or reset it. Several values of a header are joined with NUL."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StreamReplied:
    """The peer accepted a stream of ours."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(slots=True)  # not frozen: one for each chunk, and freezing triples what it costs to make
class DataReceived:
    """Bytes of a stream: a frame's payload, or as much of it as has come."""

    stream_id: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer closed its half of the stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone in both directions: the peer's wish, or its mistake."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class StreamWritable:
    """A send that took less than it was given can go on."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The echo of our ping."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes no more streams of ours; those that are open go on."""

    last_good_id: int
    status: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Nothing more will be sent or received; `error` says what was wrong, if anything was."""

    error: str | None


SpdyEvent: TypeAlias = (
    StreamOpened
    | StreamReplied
    | DataReceived
    | StreamEnded
    | StreamReset
    | StreamWritable
    | PongReceived
    | GoAwayReceived
    | SessionEnded
)
