"""Exec and attach: the events and commands that their machines have in common.

Rules:
- The command must not start before `Ready`. It could exit, and end the session, while a SPDY client still opens its
  streams. The server decides how long to wait (`missing`).
- A terminal has no separate stderr: it is one stream.
- Output that the client did not request, or whose stream it has reset, is dropped. The command goes on, and its exit
  code counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.outcome import Outcome


class Channel(IntEnum):
    """The streams, by their channel numbers in WebSocket messages."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4


@dataclass(frozen=True, slots=True)
class RequestedStreams:
    """The streams that the request asks for."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    def __post_init__(self) -> None:
        if self.tty and self.stderr:
            object.__setattr__(self, "stderr", False)


@dataclass(frozen=True, slots=True)
class Ready:
    """All streams are open: start the command."""


@dataclass(slots=True)
class StdinData:
    """Input for the command. It can arrive before `Ready`."""

    data: Buffer


@dataclass(frozen=True, slots=True)
class StdinEnd:
    """The end of the command's input."""


@dataclass(frozen=True, slots=True)
class Resized:
    """The new size of the client's terminal."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Writable:
    """There is room on this channel again after a `send` that did not take everything."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Closed:
    """The client is gone. `error` is the reason if something went wrong. Always the last event."""

    error: str | None


RemoteCommandEvent: TypeAlias = Ready | StdinData | StdinEnd | Resized | Writable | Closed


class RemoteCommand(Protocol):
    """The common interface of the machines. After `finish` they emit only `Closed`."""

    @property
    def is_ready(self) -> bool:
        """Whether `Ready` was emitted."""

    @property
    def is_finished(self) -> bool:
        """Whether `data_to_send` returns the last bytes of the session."""

    @property
    def missing(self) -> list[str]:
        """The names of the streams that the client has not opened yet."""

    @property
    def has_more(self) -> bool:
        """Whether received bytes wait: call `receive_data(b"")` in another turn of the loop."""

    def start(self) -> list[RemoteCommandEvent]:
        """Begin the session, right after the 101 response."""

    def receive_data(self, data: Buffer) -> list[RemoteCommandEvent]:
        """Turn bytes from the client into events. Never raises."""

    def receive_eof(self) -> list[RemoteCommandEvent]:
        """The client has closed its side of the connection."""

    def data_to_send(self) -> list[Buffer]:
        """The bytes to send next, in order. Each buffer is returned once."""

    def send(self, channel: Channel, data: Buffer) -> int:
        """Send output; returns how many bytes were taken. If not all, wait for `Writable`."""

    def end(self, channel: Channel) -> None:
        """This output has ended."""

    def consumed(self, n_bytes: int) -> None:
        """The command has taken this many bytes of stdin."""

    def ping(self) -> None:
        """Send a ping, so that no proxy on the way closes the connection as idle."""

    def finish(self, outcome: Outcome) -> None:
        """Send the outcome, and end the session."""
