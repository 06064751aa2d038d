"""The messages between the streaming process and the daemon. Pure.

Rules:
- The streaming process reads strangers' bytes, so it has no say: it names tickets, which are what the daemon gave out,
  and sessions, which are what it granted. It can't ask for anything that no ticket is for, and numbers are bounded.
- A call has a number, and is answered once, by a packet with that number; the rest is told and not answered.
  Descriptors are beside the packet (`host/packets`), in the order that the answer says.
- Words that go to a client are bounded, so that every packet fits.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from cri_shim.streaming.backend import Grant  # noqa: TC001 - msgspec reads the annotations

MAX_REASON_CHARACTERS = 8192
SOCKETS_AT_ONCE = 32


Natural = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Side = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
"""Of a terminal, in characters."""


class _Packet(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One packet; its class is named in it."""


# --- from the streaming process


class Ready(_Packet, frozen=True):
    """It serves."""


class Broken(_Packet, frozen=True):
    """It can't serve as it was set up, and ends."""

    reason: str


class Redeem(_Packet, frozen=True):
    """What is this ticket for? Answered by `Granted`."""

    call: int
    token: str
    kind: str


class Begin(_Packet, frozen=True):
    """Begin what was granted. Answered by `Started`, `Joined`, or, for a port-forward, `Done`; or by `Failed`."""

    call: int
    session: int
    attached: bool = False
    """It has a connection to that container's monitor already."""
    width: Side = 0
    """With `height` the size that a command's terminal begins with, in characters; 0: nobody has said."""
    height: Side = 0


class MakeSockets(_Packet, frozen=True):
    """Sockets of a family in a session's pod, up to `SOCKETS_AT_ONCE`. Answered by `Done` with them, or `Failed`."""

    call: int
    session: int
    family: Natural
    count: Annotated[int, msgspec.Meta(ge=1, le=SOCKETS_AT_ONCE)]


class Resize(_Packet, frozen=True):
    """The terminal of an attached container has this size now."""

    session: int
    width: Side
    height: Side


class Leave(_Packet, frozen=True):
    """The session is over."""

    session: int


class Detached(_Packet, frozen=True):
    """Its connection to that container's monitor is over."""

    container_id: str


class ReadSoFar(_Packet, frozen=True):
    """Answers `HowFar`: packets of that container's monitor that were read."""

    container_id: str
    packets: Natural


class Counted(_Packet, frozen=True):
    """For the metrics, as `meter` tells it."""

    sessions: list[tuple[str, str, Natural]]
    carried: list[tuple[str, str, Natural]]


class Stalled(_Packet, frozen=True):
    """A turn of its loop took long: by the wall clock, and what its thread computed meanwhile."""

    wall_s: Seconds
    cpu_s: Seconds


class Pong(_Packet, frozen=True):
    """Answers `Ping`."""


# --- from the daemon


class Setup(_Packet, frozen=True):
    """The first packet, with the listening socket. Answered by `Ready` or `Broken`."""

    creation_timeout_s: float
    idle_timeout_s: float
    path_prefix: str
    tls_cert: str
    """Files; "" without TLS."""
    tls_key: str
    tls_client_ca: str
    log_level: str
    log_format: str


class LogLevel(_Packet, frozen=True):
    """Log from this level on."""

    level: str


class Granted(_Packet, frozen=True):
    """Answers `Redeem`; none: that ticket is good for nothing."""

    call: int
    grant: Grant | None


class Started(_Packet, frozen=True):
    """A command runs. Beside it, of those that are said to be there: stdin to write, stdout and stderr to read."""

    call: int
    stdin: bool
    stdout: bool
    stderr: bool


class Joined(_Packet, frozen=True):
    """A container may be joined. Beside it: first the connection to its monitor, unless there is one; then the reading
    and the writing ends of pipes for the streams that are said to be there."""

    call: int
    container_id: str
    has_stdin: bool
    stdin_once: bool
    connection: bool
    stdin: bool
    stdout: bool
    stderr: bool


class Done(_Packet, frozen=True):
    """Answers what has no words."""

    call: int


class Failed(_Packet, frozen=True):
    """Answers what can't be done."""

    call: int
    reason: str
    errno: int = 0
    """The kernel's, where that was all."""


class Ended(_Packet, frozen=True):
    """A session's command has ended."""

    session: int
    exit_code: int


class HowFar(_Packet, frozen=True):
    """How far has that container's monitor been read?"""

    container_id: str


class Ping(_Packet, frozen=True):
    """Are you there?"""


class Stop(_Packet, frozen=True):
    """Take no more clients, tell those there are, end within so many seconds."""

    grace_s: float


ToDaemon = (
    Ready
    | Broken
    | Redeem
    | Begin
    | MakeSockets
    | Resize
    | Leave
    | Detached
    | ReadSoFar
    | Counted
    | Stalled
    | Pong
)
"""From the streaming process."""
Answer = Granted | Started | Joined | Done | Failed
ToStreamer = Setup | LogLevel | Answer | Ended | HowFar | Ping | Stop
"""From the daemon."""

encode: Final = msgspec.msgpack.Encoder().encode
decode_to_daemon: Final = msgspec.msgpack.Decoder(ToDaemon).decode
decode_to_streamer: Final = msgspec.msgpack.Decoder(ToStreamer).decode


def bounded(reason: str) -> str:
    """So much of the words as a packet takes; the end of a long text is where the cause is."""
    if len(reason) <= MAX_REASON_CHARACTERS:
        return reason
    half = MAX_REASON_CHARACTERS // 2
    return f"{reason[:half]} ... {reason[-half:]}"
