"""Exec and attach: what both machines say and take, whatever carries it.

Rules:
- The command must not start before `Ready`: it could be over, and the session with it, while a SPDY client still makes
  its streams. How long to wait is the server's decision (`missing`).
- With a terminal there is no stderr: the terminal is one stream.
- Output that the client didn't ask for, or whose stream it reset, goes nowhere: the command goes on, its exit counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer
    from cri_shim.streaming.wire.outcome import Outcome


class Channel(IntEnum):
    """The streams, by the numbers that WebSocket messages begin with."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4


@dataclass(frozen=True, slots=True)
class RequestedStreams:
    """What was asked for."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    def __post_init__(self) -> None:
        if self.tty and self.stderr:
            object.__setattr__(self, "stderr", False)


@dataclass(frozen=True, slots=True)
class Ready:
    """All streams are there: start the command."""


@dataclass(slots=True)
class StdinData:
    """Bytes for the command. They can come before `Ready`."""

    data: Buffer


@dataclass(frozen=True, slots=True)
class StdinEnd:
    """There will be no more for the command."""


@dataclass(frozen=True, slots=True)
class Resized:
    """The client's terminal has this size now."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Writable:
    """A send on this channel that took less than it was given can go on."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Closed:
    """The client is gone; `error` says what was wrong, if anything was. Always the last event."""

    error: str | None


RemoteCommandEvent: TypeAlias = Ready | StdinData | StdinEnd | Resized | Writable | Closed


class RemoteCommand(Protocol):
    """What both machines offer. After `finish` they say nothing but `Closed`."""

    @property
    def is_ready(self) -> bool:
        """Whether `Ready` was said."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is to be sent than what `data_to_send` has."""

    @property
    def missing(self) -> list[str]:
        """The streams that the client has still to make."""

    @property
    def has_more(self) -> bool:
        """Whether something that came was not looked at yet: `receive_data` again in another turn, with nothing new."""

    def start(self) -> list[RemoteCommandEvent]:
        """Begin, right behind the 101."""

    def receive_data(self, data: Buffer) -> list[RemoteCommandEvent]:
        """What these bytes of the client mean; never raises."""

    def receive_eof(self) -> list[RemoteCommandEvent]:
        """The client will send no more."""

    def data_to_send(self) -> list[Buffer]:
        """What to send next, in this order; each buffer is given out once."""

    def send(self, channel: Channel, data: Buffer) -> int:
        """Send output; how many bytes were taken. With less than all, wait for `Writable`."""

    def end(self, channel: Channel) -> None:
        """There will be no more of this output."""

    def consumed(self, n_bytes: int) -> None:
        """So many bytes of stdin were given to the command."""

    def ping(self) -> None:
        """Keep the connection alive where something between would end it."""

    def finish(self, outcome: Outcome) -> None:
        """Say how it ended, and end the session."""
