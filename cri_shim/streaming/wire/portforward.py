"""Port-forward: the events and commands that its machines have in common.

Rules:
- Nothing that happens to one connection affects another.
- kubectl ends the whole session when it reads any text on an error stream. So a target's reset is passed on as a reset,
  without text (`reset`); a text is for what the user has to know (`fail`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection

    from cri_shim.streaming.wire.buffers import Buffer

MAX_ERROR_CHARACTERS = 4 << 10


@dataclass(frozen=True, slots=True)
class PairBegun:
    """The first of a connection's two streams was opened. If the other takes too long, call `expire`."""

    request_id: str


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """A connection is complete: dial the port."""

    connection_id: int
    port: int
    request_id: str = field(default="", compare=False)
    """The request ID of the `PairBegun` before it, whose other stream has now arrived."""


@dataclass(slots=True)
class ConnectionData:
    """Bytes for the target."""

    connection_id: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class ConnectionEnd:
    """The client has closed its direction. It still reads what the target sends."""

    connection_id: int


@dataclass(frozen=True, slots=True)
class ConnectionReset:
    """The client has reset the connection: drop it. No more events follow for it."""

    connection_id: int


@dataclass(frozen=True, slots=True)
class ConnectionWritable:
    """There is room again after a `send` that did not take everything."""

    connection_id: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The client is gone. `error` is the reason if something went wrong. Always the last event."""

    error: str | None


PortForwardEvent: TypeAlias = (
    PairBegun
    | ConnectionOpened
    | ConnectionData
    | ConnectionEnd
    | ConnectionReset
    | ConnectionWritable
    | Closed
)


class PortForward(Protocol):
    """The common interface of the machines. Commands for a connection that is gone do nothing."""

    @property
    def open_connections(self) -> int:
        """The number of open connections."""

    @property
    def half_open(self) -> Collection[str]:
        """The request IDs of pairs that lack one stream."""

    @property
    def is_finished(self) -> bool:
        """Whether `data_to_send` returns the last bytes of the session."""

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait: call `receive_data(b"")` in another turn of the loop."""

    def start(self) -> list[PortForwardEvent]:
        """Begin the session, right after the 101 response."""

    def receive_data(self, data: Buffer) -> list[PortForwardEvent]:
        """Turn bytes from the client into events. Never raises."""

    def receive_eof(self) -> list[PortForwardEvent]:
        """The client has closed its side of the connection."""

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""

    def send(self, connection_id: int, data: Buffer) -> int:
        """Send the target's bytes; returns how many were taken. If not all, wait for `ConnectionWritable`."""

    def room(self, connection_id: int, wanted: int) -> int:
        """How many of `wanted` bytes `send` would take. After 0, `ConnectionWritable` follows."""

    def end(self, connection_id: int) -> None:
        """The target has closed its direction."""

    def complete(self, connection_id: int) -> None:
        """End a connection that has ended normally in both directions."""

    def fail(self, connection_id: int, message: str) -> None:
        """Close a connection that failed, and send the client the reason."""

    def reset(self, connection_id: int) -> None:
        """Reset a connection that the target reset."""

    def consumed(self, connection_id: int, n_bytes: int) -> None:
        """The target has taken this many bytes."""

    def expire(self, request_id: str) -> None:
        """Fail a pair whose other stream did not arrive in time. Does nothing if it has arrived."""

    def ping(self) -> None:
        """Send a ping, so that no proxy on the way closes the connection as idle."""

    def close(self) -> None:
        """End the session."""
