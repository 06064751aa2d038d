"""Port-forward: what both machines say and take, whatever carries it.

Rules:
- Nothing that happens to one connection touches another.
- kubectl ends the whole session when it reads any text on an error stream: a reset by the target is therefore passed
  on as a reset, without words (`reset`), and text is for what the user has to know (`fail`).
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
    """The first of a connection's two streams came. When the other takes too long: `expire`."""

    request_id: str


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    """Dial the port."""

    connection_id: int
    port: int
    request_id: str = field(default="", compare=False)
    """Of the `PairBegun` that this pair began with: nothing of it is waited for any more."""


@dataclass(slots=True)
class ConnectionData:
    """Bytes for the target."""

    connection_id: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class ConnectionEnd:
    """The client has no more for the target, but still takes what the target has."""

    connection_id: int


@dataclass(frozen=True, slots=True)
class ConnectionReset:
    """The client gave the connection up: drop it. Nothing more comes for it."""

    connection_id: int


@dataclass(frozen=True, slots=True)
class ConnectionWritable:
    """A send that took less than it was given can go on."""

    connection_id: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The client is gone; `error` says what was wrong, if anything was. Always the last event."""

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
    """What both machines offer. Commands for a connection that is gone do nothing."""

    @property
    def open_connections(self) -> int:
        """Connections that aren't over."""

    @property
    def half_open(self) -> Collection[str]:
        """The request ids of pairs that are not whole."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is to be sent than what `data_to_send` has."""

    @property
    def has_more(self) -> bool:
        """Whether something that came was not looked at yet: `receive_data` again in another turn, with nothing new."""

    def start(self) -> list[PortForwardEvent]:
        """Begin, right behind the 101."""

    def receive_data(self, data: Buffer) -> list[PortForwardEvent]:
        """What these bytes of the client mean; never raises."""

    def receive_eof(self) -> list[PortForwardEvent]:
        """The client will send no more."""

    def data_to_send(self) -> list[Buffer]:
        """What to send next, in this order; each buffer is given out once."""

    def send(self, connection_id: int, data: Buffer) -> int:
        """Send what the target said; how many bytes were taken. With less than all, wait for `ConnectionWritable`."""

    def room(self, connection_id: int, wanted: int) -> int:
        """How much of so many bytes `send` would take; after none, `ConnectionWritable` follows."""

    def end(self, connection_id: int) -> None:
        """The target has no more to say."""

    def complete(self, connection_id: int) -> None:
        """The connection is over in both directions, and nothing was wrong."""

    def fail(self, connection_id: int, message: str) -> None:
        """The connection can't be made or kept: the client is told why."""

    def reset(self, connection_id: int) -> None:
        """The target reset the connection, and so do we."""

    def consumed(self, connection_id: int, n_bytes: int) -> None:
        """So many bytes were given to the target."""

    def expire(self, request_id: str) -> None:
        """The other stream of this pair took too long; nothing if it is there by now."""

    def ping(self) -> None:
        """Keep the connection alive where something between would end it."""

    def close(self) -> None:
        """End the session."""
