"""The messages between the streaming process and the daemon. Pure.

Rules:
- The streaming process parses untrusted bytes, so it has no authority. It refers to tickets that the daemon issued and
  sessions that the daemon granted, and can request nothing else. Numbers are bounded.
- A request has a call number, and exactly one packet answers it, with the same number. Other messages get no answer.
  Descriptors travel beside the packet (`host/packets`), in the order that the answer's fields state.
- Texts for clients are bounded, so that every packet fits.
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
"""Width or height of a terminal, in characters."""


class _Packet(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A packet, tagged with the name of its class."""


# --- from the streaming process


class Ready(_Packet, frozen=True):
    """The process is set up and serves clients."""


class Broken(_Packet, frozen=True):
    """The process can't serve with this setup, and exits."""

    reason: str


class Redeem(_Packet, frozen=True):
    """Redeem a ticket. Answered by `Granted`."""

    call: int
    token: str
    kind: str


class Begin(_Packet, frozen=True):
    """Begin a granted session. Answered by `Started` (exec), `Joined` (attach), `Done` (port-forward), or `Failed`."""

    call: int
    session: int
    attached: bool = False
    """Whether the process already has a connection to that container's monitor."""
    width: Side = 0
    """With `height`, the initial size of a command's terminal, in characters; 0 if unknown."""
    height: Side = 0


class MakeSockets(_Packet, frozen=True):
    """Create `count` sockets of a family in a session's pod. Answered by `Done`, with the sockets, or `Failed`."""

    call: int
    session: int
    family: Natural
    count: Annotated[int, msgspec.Meta(ge=1, le=SOCKETS_AT_ONCE)]
    on_node: bool = False
    """Rather in the node's network, for who reaches the pod by its address."""


class Resize(_Packet, frozen=True):
    """Set the terminal size of an attached container, or of an exec whose terminal is a shim's."""

    session: int
    width: Side
    height: Side


class Leave(_Packet, frozen=True):
    """A session is over."""

    session: int


class Detached(_Packet, frozen=True):
    """The connection to that container's monitor is closed."""

    container_id: str


class ReadSoFar(_Packet, frozen=True):
    """The answer to `HowFar`: how many packets of that container's monitor were read."""

    container_id: str
    packets: Natural


class Counted(_Packet, frozen=True):
    """Numbers for the metrics (`meter`)."""

    sessions: list[tuple[str, str, Natural]]
    carried: list[tuple[str, str, Natural]]


class Stalled(_Packet, frozen=True):
    """A turn of the event loop took long: its wall-clock time, and the CPU time of its thread."""

    wall_s: Seconds
    cpu_s: Seconds


class Pong(_Packet, frozen=True):
    """The answer to `Ping`."""


# --- from the daemon


class Setup(_Packet, frozen=True):
    """The first packet, with the listening socket beside it. Answered by `Ready` or `Broken`."""

    creation_timeout_s: float
    idle_timeout_s: float
    path_prefix: str
    tls_cert: str
    """The certificate's path; empty without TLS."""
    tls_key: str
    tls_client_ca: str
    log_level: str
    log_format: str


class LogLevel(_Packet, frozen=True):
    """Change the log level."""

    level: str


class Granted(_Packet, frozen=True):
    """The answer to `Redeem`; None for an invalid ticket."""

    call: int
    grant: Grant | None


class Started(_Packet, frozen=True):
    """A command runs. Beside it, for each stream that is true: stdin for writing, stdout and stderr for reading."""

    call: int
    stdin: bool
    stdout: bool
    stderr: bool


class Joined(_Packet, frozen=True):
    """A container may be attached to. Beside it: the connection to its monitor, if `connection`; then, for each stream
    that is true, the read end and the write end of a pipe."""

    call: int
    container_id: str
    has_stdin: bool
    stdin_once: bool
    connection: bool
    stdin: bool
    stdout: bool
    stderr: bool


class Done(_Packet, frozen=True):
    """The request succeeded, and the answer has no fields."""

    call: int


class Failed(_Packet, frozen=True):
    """The request failed."""

    call: int
    reason: str
    errno: int = 0
    """The kernel's error number, if a system call was all that failed."""


class Ended(_Packet, frozen=True):
    """A session's command has exited."""

    session: int
    exit_code: int


class HowFar(_Packet, frozen=True):
    """How many packets of that container's monitor were read? Answered by `ReadSoFar`."""

    container_id: str


class Ping(_Packet, frozen=True):
    """Check that the process responds. Answered by `Pong`."""


class Stop(_Packet, frozen=True):
    """Accept no more clients, end the sessions, and exit within `grace_s` seconds."""

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
"""Messages from the streaming process."""
Answer = Granted | Started | Joined | Done | Failed
ToStreamer = Setup | LogLevel | Answer | Ended | HowFar | Ping | Stop
"""Messages from the daemon."""

encode: Final = msgspec.msgpack.Encoder().encode
decode_to_daemon: Final = msgspec.msgpack.Decoder(ToDaemon).decode
decode_to_streamer: Final = msgspec.msgpack.Decoder(ToStreamer).decode


def bounded(reason: str) -> str:
    """Cut a text to what a packet can hold. The middle goes: the cause of an error is often at the end."""
    if len(reason) <= MAX_REASON_CHARACTERS:
        return reason
    half = MAX_REASON_CHARACTERS // 2
    return f"{reason[:half]} ... {reason[-half:]}"
