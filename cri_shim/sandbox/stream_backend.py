"""Serves the streaming process from the daemon: redeems tickets, and opens what a granted session needs on the node.

Rules:
- Only what a ticket was issued for is done. A session exists from its grant to its `Leave`, or to the end of the
  process.
- Replies carry descriptors; the streams' data does not pass through the daemon. The daemon waits for the end of an
  exec's command and reports it. Ending the session does not end the command (`exec.session`).
- The end of the streaming process ends all its sessions, as if their clients had disconnected.
- Every call gets a reply, also after an error.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim import metrics
from cri_shim.errors import CriShimError, NotFoundError, WrongStateError
from cri_shim.host.packets import close_all
from cri_shim.oci.shim.exec import ShimExec
from cri_shim.sandbox.exec.attach import make_pipes
from cri_shim.sandbox.exec.port_forward import pod_sockets
from cri_shim.sandbox.store.processes import own_kernel_runtime
from cri_shim.sandbox.store.requests import require_ready
from cri_shim.streaming import ipc
from cri_shim.streaming.backend import (
    KINDS,
    AttachRequest,
    ExecRequest,
    Grant,
    PortForwardRequest,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence

    from cri_shim.background import Background
    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import Runtime
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.exec.attach import AttachSessions
    from cri_shim.sandbox.exec.session import Command, ExecSessions
    from cri_shim.sandbox.pods import Pods
    from cri_shim.sandbox.store.store import Sandbox
    from cri_shim.streaming.backend import Request
    from cri_shim.streaming.tickets import Tickets

    Reply = tuple[ipc.Answer, Sequence[int]]

log = structlog.get_logger()


def _to_nobody(_packet: ipc.ToStreamer, descriptors: Sequence[int] = ()) -> None:
    close_all(descriptors)


class StreamBackend:
    """Serves one streaming process at a time, between `open` and `close`."""

    def __init__(
        self,
        *,
        host: Host,
        tickets: Tickets,
        containers: Containers,
        pods: Pods,
        execs: ExecSessions,
        attach_sessions: AttachSessions,
        background: Background,
        runtime_of: Callable[[str], Runtime],
    ) -> None:
        self._host = host
        self._runtime_of = runtime_of
        self._tickets = tickets
        self._containers = containers
        self._pods = pods
        self._execs = execs
        self._attach_sessions = attach_sessions
        self._background = background
        self._numbers = itertools.count(1)
        self._granted: dict[int, Request] = {}
        self._commands: dict[int, asyncio.Task[None]] = {}
        """The task of each session that starts a command and awaits its end."""
        self._execs_of_shims: dict[int, ShimExec] = {}
        """The command of each session whose terminal belongs to a shim."""
        self._send: Callable[..., None] = _to_nobody
        attach_sessions.ask_how_far = lambda container_id: self._send(
            ipc.HowFar(container_id=container_id)
        )

    @property
    def sessions(self) -> int:
        """The number of sessions whose end has not been reported yet."""
        return len(self._granted)

    @property
    def commands(self) -> int:
        """The number of sessions with a command that is being started or runs."""
        return len(self._commands)

    def open(self, send: Callable[..., None]) -> None:
        """Serve a streaming process. `send(packet, descriptors)` sends a message and takes the descriptors."""
        self._send = send

    def close(self) -> None:
        """End all sessions, since the streaming process is gone. Idempotent."""
        self._send = _to_nobody
        for session in list(self._granted):
            self._leave(session)
        self._attach_sessions.all_disconnected()
        metrics.STREAM_SESSIONS.clear()

    def handle(self, message: ipc.ToDaemon) -> None:
        """Handle a message of the streaming process."""
        match message:
            case ipc.Redeem():
                self._send(ipc.Granted(call=message.call, grant=self._redeem(message)))
            case ipc.Begin():
                self._begin(message)
            case ipc.MakeSockets():
                self._background.start(
                    "sockets for a port-forward", self._answer(message.call, self._sockets(message))
                )
            case ipc.Resize(session=session, width=width, height=height):
                self._resize(session, width, height)
            case ipc.Leave(session=session):
                self._leave(session)
            case ipc.Detached(container_id=container_id):
                self._attach_sessions.disconnected(container_id)
            case ipc.ReadSoFar(container_id=container_id, packets=packets):
                self._attach_sessions.read_so_far(container_id, packets)
            case ipc.Counted(sessions=sessions, carried=carried):
                _count(sessions, carried)
            case ipc.Stalled(wall_s=wall_s, cpu_s=cpu_s):
                metrics.count_stall("streaming", wall_s, cpu_s)
            case ipc.Ready() | ipc.Broken() | ipc.Pong():
                pass  # handled by `daemon.streaming`

    # --- sessions

    def _redeem(self, message: ipc.Redeem) -> Grant | None:
        kind = KINDS.get(message.kind)
        request = None if kind is None else self._tickets.redeem(message.token, kind)
        if request is None:
            return None
        session = next(self._numbers)
        self._granted[session] = request
        if isinstance(request, PortForwardRequest):
            return Grant(
                session,
                message.kind,
                request.sandbox_id,
                ports=request.ports,
                sandbox_id=request.sandbox_id,
                addresses=self._addresses(request.sandbox_id),
            )
        streams = (request.stdin, request.stdout, request.stderr, request.tty)
        return Grant(
            session, message.kind, request.container_id, *streams, sandbox_id=request.sandbox_id
        )

    def _addresses(self, sandbox_id: str) -> tuple[str, ...]:
        """The addresses for the ports of a pod with its own kernel, whose loopback is not on the node. Else none."""
        try:
            sandbox = self._pods.find(sandbox_id)
        except NotFoundError:
            return ()
        return sandbox.status.ips if self._has_own_kernel(sandbox) else ()

    def _has_own_kernel(self, sandbox: Sandbox) -> bool:
        return own_kernel_runtime(self._runtime_of, sandbox.record.handler) is not None

    def _begin(self, message: ipc.Begin) -> None:
        match self._granted.get(message.session):
            case ExecRequest() as request:
                work = self._run_command(message, request)
                task = self._background.start(f"exec in {request.container_id}", work)
                self._commands[message.session] = task
                task.add_done_callback(lambda _: self._commands.pop(message.session, None))
            case AttachRequest() as request:
                self._answer_now(message.call, partial(self._join, message, request))
            case PortForwardRequest() as request:
                self._answer_now(message.call, partial(self._admit, message, request))
            case None:
                self._answer_now(message.call, partial(self._unknown, message.session))

    def _leave(self, session: int) -> None:
        self._granted.pop(session, None)
        if (command := self._commands.pop(session, None)) is not None:
            command.cancel()  # stops waiting for the command, which runs on

    def _resize(self, session: int, width: int, height: int) -> None:
        request = self._granted.get(session)
        child = self._execs_of_shims.get(session)
        if child is not None:
            self._background.start("resize the terminal of an exec", _resize(child, width, height))
        if isinstance(request, AttachRequest):
            try:
                container = self._containers.find(request.container_id)
                self._attach_sessions.resize(
                    self._attach_sessions.attachable(container), width, height
                )
            except CriShimError as error:  # the container ended meanwhile
                log.debug("cannot resize the terminal", error=str(error))

    # --- answers

    def _answer_now(self, call: int, work: Callable[[], Reply]) -> None:
        try:
            answer, descriptors = work()
        except CriShimError as error:
            self._send(_failed(call, error))
        else:
            self._send(answer, descriptors)

    async def _answer(self, call: int, work: Awaitable[Reply]) -> None:
        answer: ipc.Answer = ipc.Failed(call=call, reason="internal error; see the daemon's log")
        descriptors: Sequence[int] = ()
        try:
            answer, descriptors = await work
        except CriShimError as error:
            answer = _failed(call, error)
        finally:
            self._send(answer, descriptors)

    async def _run_command(self, message: ipc.Begin, request: ExecRequest) -> None:
        started: list[Command] = []
        await self._answer(message.call, self._start_command(message, request, started))
        for child in started:
            if isinstance(child, ShimExec):
                self._execs_of_shims[message.session] = child
            try:
                ending = await child.wait()
            finally:
                self._execs_of_shims.pop(message.session, None)
            self._send(ipc.Ended(session=message.session, exit_code=ending.exit_code))

    async def _start_command(
        self, message: ipc.Begin, request: ExecRequest, started: list[Command]
    ) -> Reply:
        streams = await self._execs.open(
            self._containers.find(request.container_id),
            request.command,
            stdin=request.stdin,
            stdout=request.stdout,
            tty=request.tty,
            size=(message.width, message.height) if message.width and message.height else None,
        )
        started.append(streams.child)
        given = (streams.stdin, streams.stdout, streams.stderr)
        answer = ipc.Started(
            call=message.call,
            stdin=streams.stdin is not None,
            stdout=streams.stdout is not None,
            stderr=streams.stderr is not None,
        )
        return answer, [fd for fd in given if fd is not None]

    def _join(self, message: ipc.Begin, request: AttachRequest) -> Reply:
        target = self._attach_sessions.attachable(self._containers.find(request.container_id))
        connection = [] if message.attached else [self._attach_sessions.connect(target)]
        try:
            pipes = make_pipes(
                target, stdin=request.stdin, stdout=request.stdout, stderr=request.stderr
            )
        except BaseException:
            close_all(connection)
            self._attach_sessions.disconnected(target.container_id)
            raise
        given = (pipes.stdin, pipes.stdout, pipes.stderr)
        answer = ipc.Joined(
            call=message.call,
            container_id=target.container_id,
            has_stdin=target.stdin,
            stdin_once=target.stdin_once,
            connection=bool(connection),
            stdin=pipes.stdin is not None,
            stdout=pipes.stdout is not None,
            stderr=pipes.stderr is not None,
        )
        return answer, [*connection, *(fd for pipe in given for fd in pipe or ())]

    def _admit(self, message: ipc.Begin, request: PortForwardRequest) -> Reply:
        require_ready(self._pods.find(request.sandbox_id))
        return ipc.Done(call=message.call), ()

    def _unknown(self, session: int) -> Reply:
        raise WrongStateError(f"session {session} has ended")

    async def _sockets(self, message: ipc.MakeSockets) -> Reply:
        request = self._granted.get(message.session)
        if not isinstance(request, PortForwardRequest):
            return self._unknown(message.session)
        sandbox = self._pods.find(request.sandbox_id)
        require_ready(sandbox)
        if message.on_node and not self._has_own_kernel(sandbox):
            raise WrongStateError(
                f"sandbox {sandbox.id}: its ports are reached in its network namespace, not from the node"
            )
        inside = sandbox.record.netns and not message.on_node
        netns = Path(sandbox.record.netns) if inside else None
        made = await pod_sockets(self._host, sandbox.id, netns, message.family, message.count)
        return ipc.Done(call=message.call), [each.detach() for each in made]


async def _resize(child: ShimExec, width: int, height: int) -> None:
    try:
        await child.resize(width, height)
    except CriShimError as error:  # it ended meanwhile
        log.debug("terminal not resized", error=str(error))


def _failed(call: int, error: CriShimError) -> ipc.Failed:
    cause = error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    return ipc.Failed(call=call, reason=ipc.bounded(str(error)), errno=number or 0)


def _count(
    sessions: Sequence[tuple[str, str, int]], carried: Sequence[tuple[str, str, int]]
) -> None:
    for kind, protocol, now in sessions:
        metrics.STREAM_SESSIONS.labels(kind, protocol).set(now)
    for kind, direction, more in carried:
        metrics.STREAM_BYTES.labels(kind, direction).inc(more)
