"""The streaming process's client of the daemon's stream backend: it turns the server's calls into packets.

Rules:
- An answer may arrive after its caller gave up. What it brings (descriptors, a grant) is then given back.
- Terminal sizes, which a client can send often, reach the daemon at a bounded rate.
- All attach sessions of a container in this process share one connection to its monitor, which the daemon made.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import termios
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cri_shim.errors import CriShimError, ResourceExhaustedError, host_step
from cri_shim.host.packets import close_all
from cri_shim.oci.attach_pipes import Pipes
from cri_shim.streamer.attach_client import AttachClient
from cri_shim.streaming import ipc
from cri_shim.streaming.backend import Command
from cri_shim.streaming.dialer import PodDialer

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.streaming.backend import Grant

RESIZE_PAUSE_S = 0.05
"""Between two sizes of an attached terminal: each size costs a message to the daemon and one to the monitor."""
A = TypeVar("A", bound=ipc.Answer)
Answered = tuple[ipc.Answer, list[int]]


class BackendClient:
    """A `streaming.backend.Backend` that is a client of the daemon."""

    def __init__(self, send: Callable[[ipc.ToDaemon], None]) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Answered]] = {}
        self._commands: dict[int, asyncio.Future[int]] = {}
        """Exit codes that are waited for, by session."""
        self._clients: dict[str, AttachClient] = {}
        self._attaching = asyncio.Lock()

    @property
    def unanswered(self) -> int:
        """How many requests the daemon has not answered yet."""
        return len(self._calls)

    @property
    def commands(self) -> int:
        """How many sessions wait for the exit code of a command."""
        return len(self._commands)

    # --- called by the server

    async def redeem(self, token: str, kind: str) -> Grant | None:
        """Redeem a ticket."""
        call = next(self._numbers)
        answer, _ = await self._call(ipc.Redeem(call=call, token=token, kind=kind), ipc.Granted)
        return answer.grant

    async def exec(self, grant: Grant, size: tuple[int, int] | None = None) -> Command:
        """Start the command."""
        # Registered before the call: `Ended` may arrive right behind the answer.
        ended = self._commands[grant.session] = self._loop.create_future()
        try:
            answer, given = await self._call(self._begin(grant, size=size), ipc.Started)
            stdin, stdout, stderr = _each(given, answer.stdin, answer.stdout, answer.stderr)
            try:
                resize: Callable[[int, int], None] = _no_terminal
                if grant.tty and stdout is not None:
                    resize = (
                        _resizer(stdout, ended)
                        if os.isatty(stdout)
                        else self._by_daemon(grant.session, ended)
                    )
            except CriShimError:
                close_all(given)
                raise
        except BaseException:
            ended.cancel()
            del self._commands[grant.session]
            raise
        return Command(stdin, stdout, stderr, ended, resize)

    async def attach(self, grant: Grant) -> Command:
        """Attach to the container."""
        async with (
            self._attaching
        ):  # otherwise two sessions could each open a connection to one monitor
            client = None
            while client is None:
                # Our connection may end while the daemon answers. Then ask again, for a new one.
                attached = grant.object_id in self._clients
                answer, given = await self._call(self._begin(grant, attached=attached), ipc.Joined)
                client, pipes = self._joined(answer, given)
            member = client.join(pipes)

        resize = self._by_daemon(grant.session, member.ended)
        return Command(member.stdin, member.stdout, member.stderr, member.ended, resize)

    def _by_daemon(self, session: int, ended: asyncio.Future[int]) -> Callable[[int, int], None]:
        """A function that has the daemon set the size of a session's terminal."""

        def tell(width: int, height: int) -> None:
            self._send(ipc.Resize(session=session, width=width, height=height))

        sizes = _Sizes(tell)
        ended.add_done_callback(lambda _: sizes.close())
        return sizes.resize

    async def port_forward(self, grant: Grant) -> PodDialer:
        """Return a dialer for the pod."""
        await self._call(self._begin(grant), ipc.Done)
        return PodDialer(grant.object_id, partial(self._sockets, grant.session), grant.addresses)

    def leave(self, grant: Grant) -> None:
        """End the session."""
        self._commands.pop(grant.session, None)
        self._send(ipc.Leave(session=grant.session))

    # --- from the daemon

    def handle(self, packet: ipc.ToStreamer, descriptors: list[int]) -> None:
        """Process an answer or a notice. Takes over the descriptors."""
        match packet:
            case ipc.Granted() | ipc.Started() | ipc.Joined() | ipc.Done() | ipc.Failed():
                future = self._calls.pop(packet.call, None)
                if future is not None and not future.done():
                    future.set_result((packet, descriptors))
                    return
                if isinstance(packet, ipc.Granted) and packet.grant is not None:
                    # Nobody waits for this grant any more: give it back.
                    self.leave(packet.grant)
                elif isinstance(packet, ipc.Joined) and packet.connection:
                    self._send(ipc.Detached(container_id=packet.container_id))
            case ipc.Ended(session=session, exit_code=exit_code):
                ended = self._commands.pop(session, None)
                if ended is not None and not ended.done():
                    ended.set_result(exit_code)
            case ipc.HowFar(container_id=container_id):
                if (client := self._clients.get(container_id)) is not None:
                    packets = client.packets_read
                    self._send(ipc.ReadSoFar(container_id=container_id, packets=packets))
            case _:
                pass  # messages for the process, which `process` handles
        close_all(descriptors)

    # --- calls

    def _begin(
        self, grant: Grant, *, attached: bool = False, size: tuple[int, int] | None = None
    ) -> ipc.Begin:
        width, height = size or (0, 0)
        return ipc.Begin(
            call=next(self._numbers),
            session=grant.session,
            attached=attached,
            width=width,
            height=height,
        )

    async def _call(
        self, request: ipc.Redeem | ipc.Begin | ipc.MakeSockets, kind: type[A]
    ) -> tuple[A, list[int]]:
        """Send a request and wait for its answer. Raises CriShimError with the daemon's reason."""
        future = self._calls[request.call] = self._loop.create_future()
        self._send(request)
        # If this task is cancelled, the future stays registered: `handle` then gives the answer's content back.
        answer, descriptors = await future
        if isinstance(answer, ipc.Failed):
            number = answer.errno
            raise CriShimError(answer.reason) from (OSError(number, "") if number else None)
        if not isinstance(answer, kind):
            close_all(descriptors)
            raise CriShimError(
                f"the daemon answered {type(answer).__name__} where {kind.__name__} was expected"
            )
        return answer, descriptors

    async def _sockets(
        self, session: int, family: int, count: int, *, on_node: bool = False
    ) -> list[socket.socket]:
        request = ipc.MakeSockets(
            call=next(self._numbers),
            session=session,
            family=family,
            count=count,
            on_node=on_node,
        )
        _, given = await self._call(request, ipc.Done)
        if not given:
            raise _lack()
        return [socket.socket(fileno=fd) for fd in given]

    def _joined(self, answer: ipc.Joined, given: list[int]) -> tuple[AttachClient | None, Pipes]:
        """The client of the container's monitor, if there is one, and a new member's pipes.

        Raises ResourceExhaustedError when descriptors are missing.
        """
        streams = [each for each in (answer.stdin, answer.stdout, answer.stderr) for _ in range(2)]
        try:
            connection, *ends = _each(given, answer.connection, *streams)
        except CriShimError:
            if answer.connection:
                self._send(ipc.Detached(container_id=answer.container_id))
            raise
        pairs = [
            (reading, writing) if reading is not None and writing is not None else None
            for reading, writing in zip(ends[::2], ends[1::2], strict=True)
        ]
        pipes = Pipes(*pairs)
        if connection is not None:
            return self._connected(answer, connection), pipes
        client = self._clients.get(answer.container_id)
        if client is None:
            pipes.close()
        return client, pipes

    def _connected(self, answer: ipc.Joined, connection: int) -> AttachClient:
        container_id = answer.container_id

        def forget() -> None:
            if self._clients.get(container_id) is client:
                del self._clients[container_id]
                self._send(ipc.Detached(container_id=container_id))

        client = self._clients[container_id] = AttachClient(
            container_id,
            socket.socket(fileno=connection),
            stdin=answer.has_stdin,
            stdin_once=answer.stdin_once,
            on_end=forget,
        )
        return client


class _Sizes:
    """The sizes of one terminal. A size is sent at once, unless another was sent just before."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell
        self._size: tuple[int, int] | None = None
        """The size that is still to be sent."""
        self._timer: asyncio.TimerHandle | None = None

    def resize(self, width: int, height: int) -> None:
        """Set the size."""
        self._size = width, height
        if self._timer is None:
            self._tell_now()

    def close(self) -> None:
        """Stop: the terminal is gone."""
        self._size = None
        if self._timer is not None:
            self._timer.cancel()

    def _tell_now(self) -> None:
        self._timer = None
        if self._size is not None:
            self._tell(*self._size)
            self._size = None
            self._timer = asyncio.get_running_loop().call_later(RESIZE_PAUSE_S, self._tell_now)


def _each(given: list[int], *there: bool) -> list[int | None]:
    """Assign the descriptors to their streams. Raises ResourceExhaustedError when some are missing."""
    if len(given) != sum(there):
        close_all(given)
        raise _lack()
    left = iter(given)
    return [next(left) if each else None for each in there]


def _lack() -> ResourceExhaustedError:
    return ResourceExhaustedError(
        "the streaming process has no free descriptors: raise LimitNOFILE"
    )


def _no_terminal(_width: int, _height: int) -> None:
    """Do nothing: the command has no terminal."""


def _resizer(terminal: int, ended: asyncio.Future[int]) -> Callable[[int, int], None]:
    """A function that sets a terminal's size, through its own descriptor, until the process or its session ends.

    Raises CriShimError when there is no free descriptor.
    """
    with host_step("exec: duplicating the descriptor of its terminal"):
        fd = os.dup(terminal)
    ended.add_done_callback(lambda _: os.close(fd))

    def resize(width: int, height: int) -> None:
        if not ended.done():
            with contextlib.suppress(
                OSError, termios.error
            ):  # hung up, or what is said of a command that never ran
                termios.tcsetwinsize(fd, (height, width))

    return resize
