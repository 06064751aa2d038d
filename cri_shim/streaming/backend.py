"""The interface between the streaming server and the daemon, which is another process.

Rules:
- The backend hands out descriptors and futures, never bytes: the server pumps the data itself.
- All calls happen on the server's loop. The server owns the descriptors it receives, and closes them.
- The complete CRI request stays with the daemon. The server gets a grant, with what it needs to know of the request. So
  nothing that a streaming client sends, nor a compromised server, can change what is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """Run `command` in a container."""

    container_id: str
    command: tuple[str, ...]
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    sandbox_id: str = ""
    """The pod whose share of tickets and sessions it uses; the same in each request."""


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """Attach to the streams of a container's main process."""

    container_id: str
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    sandbox_id: str = ""


@dataclass(frozen=True, slots=True)
class PortForwardRequest:
    """Connect to ports of a pod; to any port if none is named."""

    sandbox_id: str
    ports: tuple[int, ...]


Request = ExecRequest | AttachRequest | PortForwardRequest

KINDS: Final[dict[str, type[Request]]] = {
    "exec": ExecRequest,
    "attach": AttachRequest,
    "portforward": PortForwardRequest,
}
"""By the first component of the URL's path."""


class Grant(msgspec.Struct, frozen=True):
    """A redeemed ticket, which permits one session."""

    session: int
    """The session's number, under which the daemon keeps the request until `leave`."""
    kind: str
    """A key of `KINDS`."""
    object_id: str
    """ID of the container or the sandbox, for the log."""
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False
    ports: tuple[int, ...] = ()
    sandbox_id: str = ""
    """The pod whose share of sessions it uses."""
    addresses: tuple[str, ...] = ()
    """Where the node reaches a pod whose ports may not be on its network's loopback."""


@dataclass(slots=True, eq=False)
class Command:
    """A process with its streams. The descriptors are non-blocking, and all of pipes or all of one terminal."""

    stdin: int | None
    """For writing. To close it ends the input; a terminal's input ends only with a hangup."""
    stdout: int | None
    """For reading; also for a terminal."""
    stderr: int | None
    ended: asyncio.Future[int]
    """The exit status (128 + signal number), set when all output is in the pipes. A CriShimError means that the process
    is no longer followed. The server cancels it when it stops listening."""
    resize: Callable[[int, int], None]
    """Sets the terminal's width and height; does nothing without a terminal."""


class Dialer(Protocol):
    """Connects to one pod's ports."""

    async def connect(self, port: int) -> socket.socket:
        """A connected, non-blocking socket, to the pod's loopback: IPv4, then IPv6.

        Raises CriShimError with the reason of a failure.
        """

    def close(self) -> None:
        """Release what it holds. Connected sockets stay open."""


class Backend(Protocol):
    """The daemon, as the streaming server sees it."""

    async def redeem(self, token: str, kind: str) -> Grant | None:
        """Use up a ticket and return its grant; None for a ticket that is unknown, expired or of another kind."""

    async def exec(self, grant: Grant, size: tuple[int, int] | None = None) -> Command:
        """Start the command. Its terminal, if any, gets this width and height.

        Raises CriShimError; if the runtime refused, with its message.
        """

    async def attach(self, grant: Grant) -> Command:
        """Attach to the container. Raises CriShimError."""

    async def port_forward(self, grant: Grant) -> Dialer:
        """A dialer for the pod. Raises CriShimError."""

    def leave(self, grant: Grant) -> None:
        """End the session."""
