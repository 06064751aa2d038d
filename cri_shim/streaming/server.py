"""The streaming server: it accepts requests that carry a ticket, and runs the sessions that follow.

Rules:
- A client has ten seconds for its request, of at most 16 KiB. The number of clients without a session is bounded
  (`newcomers`). Nothing is allocated for a client before its ticket is redeemed.
- Sessions are bounded, and so are the streams of all port-forwards: in all, and per pod, so that no pod can take
  everything.
- The protocol is negotiated before the ticket is used up, so a client may try another protocol with the same URL.
- Tokens are never logged.
- The listening socket is passed in, so it can outlive the server.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import structlog

from cri_shim.background import Background
from cri_shim.errors import CriShimError
from cri_shim.streaming.backend import KINDS
from cri_shim.streaming.connection import Connection
from cri_shim.streaming.listener import Listener
from cri_shim.streaming.newcomers import Newcomers
from cri_shim.streaming.port_forward import PortForwardSession
from cri_shim.streaming.remote_command import RemoteCommandSession
from cri_shim.streaming.session import Limits, Traffic
from cri_shim.streaming.turns import Turns
from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.http1 import RequestReader, error_answer, error_response
from cri_shim.streaming.wire.machines import port_forward, remote_command
from cri_shim.streaming.wire.portforward_spdy import parse_port
from cri_shim.streaming.wire.remotecommand import RequestedStreams
from cri_shim.streaming.wire.shares import Share, Shares
from cri_shim.streaming.wire.spdy import DEFAULT_MAX_STREAMS
from cri_shim.streaming.wire.upgrade import negotiate_port_forward, negotiate_remote_command

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    from cri_shim.streaming.backend import Backend, Command, Grant
    from cri_shim.streaming.meter import Meter
    from cri_shim.streaming.session import Session
    from cri_shim.streaming.tls import ServerTls
    from cri_shim.streaming.wire.http1 import Request as HttpRequest
    from cri_shim.streaming.wire.upgrade import Upgrade

log = structlog.get_logger()

HEAD_TIMEOUT_S = 10.0
MAX_TOKEN_CHARACTERS = 64
"""More than a ticket has. Longer texts are refused without asking the daemon."""
MAX_SESSIONS, MAX_SESSIONS_OF_A_POD = 1000, 200
MAX_STREAMS, MAX_STREAMS_OF_A_POD = 16384, 4096
"""SPDY streams of all port-forwards. A forwarded connection takes two, and some 2 KB. A session has its own limit."""
REFUSAL_STALL_S = 2.0


@dataclass(frozen=True, slots=True)
class _Redeemed:
    """A request whose ticket was redeemed."""

    grant: Grant
    http: HttpRequest
    upgrade: Upgrade
    leftover: bytes


class Usage(NamedTuple):
    """How many there are of what is bounded."""

    newcomers: int
    """Clients whose request has not been read yet."""
    requests: int
    """Those with a ticket, from then to their end."""
    streams: int


class StreamingServer:
    """Serves clients with tickets. Call `start` and `stop` once."""

    def __init__(
        self,
        backend: Backend,
        limits: Limits,
        meter: Meter,
        *,
        tls: ServerTls | None = None,
        path_prefix: str = "",
    ) -> None:
        """`path_prefix` is what a URL's path may begin with, for a proxy in front that doesn't strip its own part."""
        self._backend = backend
        self._limits = limits
        self._meter = meter
        self._tls = tls
        self._prefix = path_prefix.rstrip("/")
        self._listener: Listener | None = None
        self._background = Background()
        self._turns = Turns()
        self._newcomers = Newcomers()
        self._taken = Shares(MAX_SESSIONS, MAX_SESSIONS_OF_A_POD)
        self._streams = Shares(MAX_STREAMS, MAX_STREAMS_OF_A_POD)
        self._sessions: set[Session] = set()

    @property
    def usage(self) -> Usage:
        """As it is now."""
        return Usage(len(self._newcomers), self._taken.used, self._streams.used)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those under way."""
        return tuple(self._sessions)

    def start(self, listener: socket.socket) -> None:
        """Accept clients from `listener`, which the server takes over."""
        self._listener = Listener(listener, self._newcomers.has_room, self._come)

    async def stop(self, grace_s: float) -> None:
        """Accept no more clients, end the sessions, and return within about `grace_s` seconds."""
        if self._listener is not None:
            self._listener.close()
        self._newcomers.close()
        for session in list(self._sessions):
            session.stop("the container runtime is shutting down")
        await self._background.close(grace_s)

    # --- before the session

    def _come(self, sock: socket.socket) -> None:
        try:
            connection = Connection(sock, None if self._tls is None else self._tls.context())
        except OSError:  # the client is gone
            sock.close()
            return
        self._newcomers.enter(connection)
        self._background.start("streaming client", self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        try:
            redeemed = await self._hear(connection)
            self._newcomers.leave(connection)
            if redeemed is not None:
                await self._run(connection, redeemed)
        finally:
            self._newcomers.leave(connection)
            connection.close()

    async def _hear(self, connection: Connection) -> _Redeemed | None:
        """Read the request and redeem its ticket; None after a refusal was sent."""
        reader = RequestReader()
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                await connection.open()
                request = None
                while request is None:
                    if not (data := await connection.receive()):
                        reader.receive_eof()
                        return None
                    await self._turns.own()
                    request = reader.receive_data(data)
            self._newcomers.keep(connection)
            try:
                return await self._redeem(request, bytes(reader.leftover))
            finally:
                self._newcomers.release(connection)
        except ProtocolError as error:
            await _refuse(connection, error_answer(error))
        except TimeoutError:
            await _refuse(
                connection, error_response(408, f"no request within {HEAD_TIMEOUT_S:g} s")
            )
        except (OSError, ValueError) as error:  # failed TLS handshake, hangup, or eviction
            log.debug("streaming client left before its request", error=str(error))
        return None

    async def _redeem(self, request: HttpRequest, leftover: bytes) -> _Redeemed:
        """Redeem the request's ticket. Raises ProtocolError with the HTTP response."""
        path = request.path
        if self._prefix and path.startswith(self._prefix + "/"):
            path = path.removeprefix(self._prefix)
        kind, _, token = path.removeprefix("/").partition("/")
        if kind not in KINDS:
            raise ProtocolError("no such resource", http_status=404)
        negotiate = negotiate_port_forward if kind == "portforward" else negotiate_remote_command
        # Before the ticket is used up: the client may try another protocol with the same URL.
        upgrade = negotiate(request)
        is_token = 0 < len(token) <= MAX_TOKEN_CHARACTERS
        grant = await self._backend.redeem(token, kind) if is_token else None
        if grant is None:
            raise ProtocolError(
                "this URL was used already, has expired, or was never issued: request a new one",
                http_status=404,
            )
        if not self._taken.take(grant.sandbox_id):
            self._backend.leave(grant)
            if self._taken.is_full:
                raise ProtocolError(
                    f"the node has {MAX_SESSIONS} streaming sessions, its limit: end some, or try again later",
                    http_status=503,
                )
            raise ProtocolError(
                f"sandbox {grant.sandbox_id} has {MAX_SESSIONS_OF_A_POD} streaming sessions, its limit: end some",
                http_status=429,
            )
        return _Redeemed(grant, request, upgrade, leftover)

    # --- sessions

    async def _run(self, connection: Connection, redeemed: _Redeemed) -> None:
        try:
            if redeemed.grant.kind == "portforward":
                await self._run_port_forward(connection, redeemed)
            else:
                await self._run_remote_command(connection, redeemed)
        finally:
            self._backend.leave(redeemed.grant)
            self._taken.give(redeemed.grant.sandbox_id)

    async def _run_remote_command(self, connection: Connection, redeemed: _Redeemed) -> None:
        grant = redeemed.grant
        machine = remote_command(
            redeemed.upgrade, RequestedStreams(grant.stdin, grant.stdout, grant.stderr, grant.tty)
        )
        start: Callable[[tuple[int, int] | None], Awaitable[Command]]
        start = (
            partial(self._backend.exec, grant)
            if grant.kind == "exec"
            else lambda _size: self._backend.attach(grant)
        )
        connection.send([redeemed.upgrade.response])
        session = RemoteCommandSession(
            connection,
            machine,
            self._limits,
            self._traffic(grant.kind, redeemed),
            self._turns,
            tty=grant.tty,
        )
        with self._listed(session):
            await session.run(redeemed.leftover, start)

    async def _run_port_forward(self, connection: Connection, redeemed: _Redeemed) -> None:
        grant = redeemed.grant
        streams = Share(self._streams, grant.sandbox_id, DEFAULT_MAX_STREAMS)
        try:
            machine = port_forward(
                redeemed.upgrade, grant.ports or _ports_in(redeemed.http), streams
            )
            dialer = await self._backend.port_forward(grant)
        except ProtocolError as error:
            await _refuse(connection, error_answer(error))
            return
        except CriShimError as error:
            await _refuse(connection, error_response(409, str(error)))
            return
        connection.send([redeemed.upgrade.response])
        session = PortForwardSession(
            connection,
            machine,
            self._limits,
            self._traffic("port_forward", redeemed),
            self._turns,
            background=self._background,
            ports=grant.ports,
        )
        try:
            with self._listed(session):
                await session.run(redeemed.leftover, dialer)
        finally:
            streams.close()

    def _traffic(self, kind: str, redeemed: _Redeemed) -> Traffic:
        protocol = f"{redeemed.upgrade.framing}/{redeemed.upgrade.protocol}"
        log.debug("streaming session", kind=kind, protocol=protocol, id=redeemed.grant.object_id)
        return Traffic(self._meter, kind, protocol)

    @contextmanager
    def _listed(self, session: Session) -> Iterator[None]:
        self._sessions.add(session)
        try:
            yield
        finally:
            self._sessions.discard(session)


async def _refuse(connection: Connection, answer: bytes) -> None:
    connection.send([answer])
    await connection.finish(REFUSAL_STALL_S)


def _ports_in(request: HttpRequest) -> tuple[int, ...]:
    """The ports in the URL's query, for a CRI request that named none."""
    texts = [
        text
        for name in ("port", "ports")
        for value in request.parsed_query().get(name, ())
        for text in value.split(",")
    ]
    ports = tuple(port for text in texts if (port := parse_port(text)) is not None)
    if len(ports) < len(texts):
        raise ProtocolError("query: port must be numbers from 1 to 65535")
    return ports
