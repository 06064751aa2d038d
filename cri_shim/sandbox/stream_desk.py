"""The daemon's answers to the streaming process: what tickets are for, and what granted sessions need of the node.

Rules:
- Nothing is done but what a ticket is for. A session is known from its grant to its `Leave`, or to that process's end.
- What is handed out is descriptors: whatever goes through them doesn't pass here. An exec is followed to its end for
  whoever listens; the command itself is nobody's but its own (`exec_session`).
- A streaming process that is gone has left all its sessions; what came of them ends as for clients that vanish.
- A call is answered, whatever becomes of it.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim import metrics
from cri_shim.errors import CriShimError, WrongStateError
from cri_shim.host.packets import close_all
from cri_shim.sandbox.attach import make_pipes
from cri_shim.sandbox.port_forward import pod_sockets
from cri_shim.sandbox.requests import require_ready
from cri_shim.streaming import link
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
    from cri_shim.sandbox.attach import Attachments
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.exec_session import Command, ExecSessions
    from cri_shim.sandbox.pods import Pods
    from cri_shim.streaming.backend import Request
    from cri_shim.streaming.tickets import Tickets

    Said = tuple[link.Answer, Sequence[int]]

log = structlog.get_logger()


def _to_nobody(_packet: link.Told, descriptors: Sequence[int] = ()) -> None:
    close_all(descriptors)


class StreamDesk:
    """Answers one streaming process at a time, between `open` and `close`."""

    def __init__(
        self,
        *,
        tickets: Tickets,
        containers: Containers,
        pods: Pods,
        execs: ExecSessions,
        attachments: Attachments,
        background: Background,
    ) -> None:
        self._tickets = tickets
        self._containers = containers
        self._pods = pods
        self._execs = execs
        self._attachments = attachments
        self._background = background
        self._numbers = itertools.count(1)
        self._granted: dict[int, Request] = {}
        self._commands: dict[int, asyncio.Task[None]] = {}
        """What starts and follows the command of a session."""
        self._say: Callable[..., None] = _to_nobody
        attachments.ask_how_far = lambda container_id: self._say(
            link.HowFar(container_id=container_id)
        )

    def open(self, say: Callable[..., None]) -> None:
        """A streaming process is there; `say(packet, descriptors)` tells it something and takes the descriptors."""
        self._say = say

    def close(self) -> None:
        """It is gone. Idempotent."""
        self._say = _to_nobody
        for session in list(self._granted):
            self._leave(session)
        self._attachments.all_disconnected()
        metrics.STREAM_SESSIONS.clear()

    def heard(self, asked: link.Asked) -> None:
        """What it says."""
        match asked:
            case link.Redeem():
                self._say(link.Granted(call=asked.call, grant=self._redeem(asked)))
            case link.Begin():
                self._begin(asked)
            case link.MakeSockets():
                self._background.start(
                    "sockets for a port-forward", self._answer(asked.call, self._sockets(asked))
                )
            case link.Resize(session=session, width=width, height=height):
                self._resize(session, width, height)
            case link.Leave(session=session):
                self._leave(session)
            case link.Detached(container_id=container_id):
                self._attachments.disconnected(container_id)
            case link.ReadSoFar(container_id=container_id, packets=packets):
                self._attachments.read_so_far(container_id, packets)
            case link.Counted(sessions=sessions, carried=carried):
                _count(sessions, carried)
            case link.Stalled(wall_s=wall_s, cpu_s=cpu_s):
                metrics.count_stall("streaming", wall_s, cpu_s)
            case link.Ready() | link.Broken() | link.Pong():
                pass  # about the process itself, not about sessions

    # --- sessions

    def _redeem(self, asked: link.Redeem) -> Grant | None:
        kind = KINDS.get(asked.kind)
        request = None if kind is None else self._tickets.redeem(asked.token, kind)
        if request is None:
            return None
        session = next(self._numbers)
        self._granted[session] = request
        if isinstance(request, PortForwardRequest):
            return Grant(
                session,
                asked.kind,
                request.sandbox_id,
                ports=request.ports,
                sandbox_id=request.sandbox_id,
            )
        streams = (request.stdin, request.stdout, request.stderr, request.tty)
        return Grant(
            session, asked.kind, request.container_id, *streams, sandbox_id=request.sandbox_id
        )

    def _begin(self, asked: link.Begin) -> None:
        match self._granted.get(asked.session):
            case ExecRequest() as request:
                work = self._run_command(asked, request)
                task = self._background.start(f"exec in {request.container_id}", work)
                self._commands[asked.session] = task
                task.add_done_callback(lambda _: self._commands.pop(asked.session, None))
            case AttachRequest() as request:
                self._answer_now(asked.call, partial(self._join, asked, request))
            case PortForwardRequest() as request:
                self._answer_now(asked.call, partial(self._admit, asked, request))
            case None:
                self._answer_now(asked.call, partial(self._unknown, asked.session))

    def _leave(self, session: int) -> None:
        self._granted.pop(session, None)
        if (command := self._commands.pop(session, None)) is not None:
            command.cancel()  # the following, not the command

    def _resize(self, session: int, width: int, height: int) -> None:
        request = self._granted.get(session)
        if isinstance(request, AttachRequest):
            try:
                container = self._containers.find(request.container_id)
                self._attachments.resize(self._attachments.attachable(container), width, height)
            except CriShimError as error:  # it ended meanwhile
                log.debug("terminal not resized", error=str(error))

    # --- answers

    def _answer_now(self, call: int, work: Callable[[], Said]) -> None:
        try:
            answer, descriptors = work()
        except CriShimError as error:
            self._say(_failed(call, error))
        else:
            self._say(answer, descriptors)

    async def _answer(self, call: int, work: Awaitable[Said]) -> None:
        answer: link.Answer = link.Failed(
            call=call, reason="this failed; the daemon's log says how"
        )
        descriptors: Sequence[int] = ()
        try:
            answer, descriptors = await work
        except CriShimError as error:
            answer = _failed(call, error)
        finally:
            self._say(answer, descriptors)

    async def _run_command(self, asked: link.Begin, request: ExecRequest) -> None:
        started: list[Command] = []
        await self._answer(asked.call, self._start_command(asked, request, started))
        for child in started:
            ending = await child.wait()
            self._say(link.Ended(session=asked.session, exit_code=ending.exit_code))

    async def _start_command(
        self, asked: link.Begin, request: ExecRequest, started: list[Command]
    ) -> Said:
        streams = await self._execs.open(
            self._containers.find(request.container_id),
            request.command,
            stdin=request.stdin,
            stdout=request.stdout,
            tty=request.tty,
            size=(asked.width, asked.height) if asked.width and asked.height else None,
        )
        started.append(streams.child)
        given = (streams.stdin, streams.stdout, streams.stderr)
        answer = link.Started(
            call=asked.call,
            stdin=streams.stdin is not None,
            stdout=streams.stdout is not None,
            stderr=streams.stderr is not None,
        )
        return answer, [fd for fd in given if fd is not None]

    def _join(self, asked: link.Begin, request: AttachRequest) -> Said:
        target = self._attachments.attachable(self._containers.find(request.container_id))
        connection = [] if asked.attached else [self._attachments.connect(target)]
        try:
            pipes = make_pipes(
                target, stdin=request.stdin, stdout=request.stdout, stderr=request.stderr
            )
        except BaseException:
            close_all(connection)
            self._attachments.disconnected(target.container_id)
            raise
        given = (pipes.stdin, pipes.stdout, pipes.stderr)
        answer = link.Joined(
            call=asked.call,
            container_id=target.container_id,
            has_stdin=target.stdin,
            stdin_once=target.stdin_once,
            connection=bool(connection),
            stdin=pipes.stdin is not None,
            stdout=pipes.stdout is not None,
            stderr=pipes.stderr is not None,
        )
        return answer, [*connection, *(fd for pipe in given for fd in pipe or ())]

    def _admit(self, asked: link.Begin, request: PortForwardRequest) -> Said:
        require_ready(self._pods.find(request.sandbox_id))
        return link.Done(call=asked.call), ()

    def _unknown(self, session: int) -> Said:
        raise WrongStateError(f"session {session} is over")

    async def _sockets(self, asked: link.MakeSockets) -> Said:
        request = self._granted.get(asked.session)
        if not isinstance(request, PortForwardRequest):
            return self._unknown(asked.session)
        sandbox = self._pods.find(request.sandbox_id)
        require_ready(sandbox)
        netns = Path(sandbox.record.netns) if sandbox.record.netns else None
        made = await pod_sockets(sandbox.id, netns, asked.family, asked.count)
        return link.Done(call=asked.call), [each.detach() for each in made]


def _failed(call: int, error: CriShimError) -> link.Failed:
    cause = error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    return link.Failed(call=call, reason=link.bounded(str(error)), errno=number or 0)


def _count(
    sessions: Sequence[tuple[str, str, int]], carried: Sequence[tuple[str, str, int]]
) -> None:
    for kind, protocol, now in sessions:
        metrics.STREAM_SESSIONS.labels(kind, protocol).set(now)
    for kind, direction, more in carried:
        metrics.STREAM_BYTES.labels(kind, direction).inc(more)
