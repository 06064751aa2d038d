"""What the streaming server asks of the node, which is another process.

Rules:
- What goes back and forth is descriptors and a future, never bytes: the server pumps, the node hands out.
- All of it is called on the server's loop. A descriptor that was handed out belongs to the server, which closes it.
- A request is the one that CRI was asked, whole, and stays with the node: the server gets a grant, which says what it
  has to know of it. Nothing that a streaming client says, nor a server that went astray, can change what is done.
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
    """Whose share of tickets it takes, as in all of them."""


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """Join the streams of a container's own process."""

    container_id: str
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    sandbox_id: str = ""


@dataclass(frozen=True, slots=True)
class PortForwardRequest:
    """Connect to ports of a pod; none named: to any."""

    sandbox_id: str
    ports: tuple[int, ...]


Request = ExecRequest | AttachRequest | PortForwardRequest

KINDS: Final[dict[str, type[Request]]] = {
    "exec": ExecRequest,
    "attach": AttachRequest,
    "portforward": PortForwardRequest,
}
"""By the first part of a URL's path."""


class Grant(msgspec.Struct, frozen=True):
    """A ticket that was redeemed: one session may begin."""

    session: int
    """Its number, by which the node remembers the request until `leave`."""
    kind: str
    """A key of `KINDS`."""
    object_id: str
    """Of the container or the sandbox, for the log."""
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False
    ports: tuple[int, ...] = ()
    sandbox_id: str = ""
    """Whose share of sessions it takes."""


@dataclass(slots=True, eq=False)
class Command:
    """A process whose streams are ours. The descriptors don't block; all are of pipes, or all of one terminal."""

    stdin: int | None
    """To write to. Closing it is the end of the input; of a terminal's input there is no end but the hangup."""
    stdout: int | None
    """To read from; also a terminal's."""
    stderr: int | None
    ended: asyncio.Future[int]
    """The exit status (128 and the signal's number), when there will be no more output than is in the pipes. A
    CriShimError says why the process is no longer followed. The server cancels it to say that it no longer listens."""
    resize: Callable[[int, int], None]
    """Tell the terminal its width and height, if there is one."""


class Dialer(Protocol):
    """Connects to one pod's ports."""

    async def connect(self, port: int) -> socket.socket:
        """A connected socket that doesn't block, on the pod's loopback: IPv4, then IPv6.

        Raises CriShimError saying why there is none.
        """

    def close(self) -> None:
        """Give up what it holds; the sockets it made live on."""


class Backend(Protocol):
    """The node."""

    async def redeem(self, token: str, kind: str) -> Grant | None:
        """What the ticket is good for, and it is gone; None for one that isn't there, is late, or of another kind."""

    async def exec(self, grant: Grant, size: tuple[int, int] | None = None) -> Command:
        """Start the command; a terminal begins with this width and height.

        Raises CriShimError, with the runtime's own words where it refused.
        """

    async def attach(self, grant: Grant) -> Command:
        """Join the container. Raises CriShimError."""

    async def port_forward(self, grant: Grant) -> Dialer:
        """A way into the pod. Raises CriShimError."""

    def leave(self, grant: Grant) -> None:
        """The session is over."""
