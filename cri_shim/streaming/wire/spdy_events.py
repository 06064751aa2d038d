"""The events of a SPDY connection, seen from one end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.streaming.wire.buffers import Buffer


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream: accept or reset it. Several values of one header are joined with NUL."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StreamReplied:
    """The peer accepted a stream of ours."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(
    slots=True
)  # not frozen: there is one per chunk, and frozen classes take three times as long to create
class DataReceived:
    """Bytes of a stream: a frame's payload, or the part of it that has arrived."""

    stream_id: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer closed its half of the stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone in both directions, by the peer's request or for the peer's error."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class StreamWritable:
    """There is room again after a send that did not take everything."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The echo of our PING."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer accepts no more streams. Open ones go on."""

    last_good_id: int
    status: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The session is over; `error` is the reason if something went wrong."""

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
