"""The streaming server's part of the daemon: its socket, its process, and the URL that clients get.

Rules:
- The server is a process of its own (`streamer/process`), so that streams at their full rate don't hold up who asks for
  a list. What it asks is answered by `sandbox/stream_backend`.
- The listening socket is the daemon's. When the process dies, or doesn't answer for long, another takes its place: its
  sessions are lost, but clients that come meanwhile wait, and tickets are still good.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import structlog

from cri_shim.background import settled
from cri_shim.errors import UNREADABLE_DOCUMENT, ConfigError, CriShimError, UnavailableError
from cri_shim.host.own_program import spawn_own_program
from cri_shim.host.packets import Packets, close_all
from cri_shim.streaming import ipc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.background import Background
    from cri_shim.config.model import LogSettings, StreamingSettings
    from cri_shim.host.process import Reaper
    from cri_shim.streaming.tickets import Tickets

log = structlog.get_logger()
BACKLOG = 4096
"""As many as the kernel's own bound lets by; who finds the queue full tries again after a second at best."""
START_TIMEOUT_S = 30.0
END_GRACE_S = 2.0
"""Beyond the grace that its clients get."""
PING_INTERVAL_S = 5.0
PINGS_UNANSWERED = 3
"""So many in a row, and the process is taken to hang."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
"""Before a process that ended is replaced; the pauses grow unless it had lived for the longest."""
_ANY_ADDRESS = ("0.0.0.0", "::")
_OUTSIDE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of nobody (RFC 5737, RFC 3849), to ask the routing table for ours; nothing is sent there."""


class StreamBackend(Protocol):
    """Who answers the process: `sandbox.stream_backend`."""

    def open(self, send: Callable[..., None]) -> None:
        """A process is there; `send(packet, descriptors)` sends it a message and takes the descriptors."""

    def close(self) -> None:
        """It is gone."""

    def handle(self, message: ipc.ToDaemon) -> None:
        """What it says."""


class _Process:
    """One streaming process, from its start to its end."""

    def __init__(
        self, reaper: Reaper, setup: ipc.Setup, listener: int, backend: StreamBackend
    ) -> None:
        """Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self.child = spawn_own_program(
                    reaper,
                    "cri_shim.streamer.process",
                    theirs.fileno(),
                    stderr=sys.stderr.fileno(),
                    env={},
                )
        except BaseException:
            ours.close()
            raise
        self._backend = backend
        self._packets = Packets(ours, self._handle, self._gone)
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """It has hung up, or was made to."""
        self.unanswered = 0
        backend.open(self.send)
        self.send(setup, [os.dup(listener)])

    def send(self, message: ipc.ToStreamer, descriptors: Sequence[int] = ()) -> None:
        """Tell it something; it gets the descriptors."""
        self._packets.send(ipc.encode(message), descriptors)

    def hang_up(self) -> None:
        """It ends, and its sessions are over for us."""
        self._packets.close()
        self._gone()

    def _handle(self, packet: bytes, descriptors: list[int]) -> None:
        close_all(descriptors)  # it has none to give
        try:
            message = ipc.decode_to_daemon(packet)
        except UNREADABLE_DOCUMENT as error:
            log.error("the streaming process makes no sense and is ended", error=str(error))
            self.child.kill()
            self.hang_up()
            return
        match message:
            case ipc.Ready():
                self._settle(None)
            case ipc.Broken(reason=reason):
                self._settle(ConfigError(reason))
            case ipc.Pong():
                self.unanswered = 0
            case _:
                self._backend.handle(message)

    def _gone(self) -> None:
        if self.gone.done():  # by now the backend may be another's
            return
        self.gone.set_result(None)
        self._backend.close()
        self._settle(UnavailableError("the streaming process ended while it was starting"))

    def _settle(self, error: CriShimError | None) -> None:
        if self.ready.done():
            return
        if error is None:
            self.ready.set_result(None)
        else:
            self.ready.set_exception(error)
            self.ready.exception()  # whoever waits is told; nobody may be waiting any more

    async def end(self, timeout_s: float) -> None:
        """See it end within `timeout_s`, or kill it."""
        if await self.child.wait_at_most(timeout_s) is None:
            self.child.kill()
            await self.child.wait_at_most(END_GRACE_S)
        self.hang_up()


class Streaming:
    """The server's process, always one. `start` and `stop` it once."""

    def __init__(
        self,
        settings: StreamingSettings,
        log_settings: LogSettings,
        *,
        tickets: Tickets,
        reaper: Reaper,
        background: Background,
    ) -> None:
        self._settings = settings
        self._log_settings = log_settings
        self._reaper = reaper
        self._background = background
        self._tickets = tickets
        self._listener: socket.socket | None = None
        self._process: _Process | None = None
        self._url: str | None = None

    def base_url(self) -> str | None:
        """What clients call, without a slash at its end; None while the server isn't there."""
        return self._url

    @property
    def pid(self) -> int | None:
        """Of the process that serves now."""
        return None if self._process is None else self._process.child.pid

    async def start(self, backend: StreamBackend) -> None:
        """Listen, and return when the process serves. Raises ConfigError, UnavailableError."""
        settings = self._settings
        self._listener = _listen(settings.address, settings.port)
        try:
            self._process = await self._launch(backend)
        except BaseException:
            self._listener.close()
            self._listener = None
            raise
        self._background.keep("streaming process", self._keep(self._process, backend))
        if settings.base_url is not None:
            self._url = settings.base_url.rstrip("/")
        else:
            scheme = "http" if settings.tls.cert is None else "https"
            port = self._listener.getsockname()[1]
            self._url = f"{scheme}://{_reachable(settings.address)}:{port}"
        log.info("streaming server", address=settings.address, url=self._url, pid=self.pid)

    def reconfigure(self, settings: StreamingSettings, log_settings: LogSettings) -> None:
        """Take what a reload may change."""
        self._tickets.ttl_s = settings.token_ttl_s
        self._log_settings = log_settings
        if self._process is not None:
            self._process.send(ipc.LogLevel(level=log_settings.level))

    async def stop(self, grace_s: float) -> None:
        """Tell the sessions' clients, end within about `grace_s` seconds. Idempotent."""
        self._url = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        process, self._process = self._process, None
        if process is not None:
            process.send(ipc.Stop(grace_s=grace_s))
            await process.end(grace_s + END_GRACE_S)

    # --- the process

    async def _launch(self, backend: StreamBackend) -> _Process:
        """Raises ConfigError for what can't be served with, UnavailableError."""
        assert self._listener is not None  # noqa: S101 - the callers have seen to it
        try:
            process = _Process(self._reaper, self._setup(), self._listener.fileno(), backend)
        except OSError as error:
            raise UnavailableError(f"starting the streaming process: {error}") from error
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(process.ready)
        except BaseException as error:
            process.child.kill()
            process.hang_up()
            if isinstance(error, TimeoutError):
                raise UnavailableError(
                    f"the streaming process was not ready within {START_TIMEOUT_S:g} s"
                ) from None
            raise
        return process

    def _setup(self) -> ipc.Setup:
        settings = self._settings
        return ipc.Setup(
            creation_timeout_s=float(settings.creation_timeout_s),
            idle_timeout_s=float(settings.idle_timeout_s),
            path_prefix="" if settings.base_url is None else urlsplit(settings.base_url).path,
            tls_cert=str(settings.tls.cert or ""),
            tls_key=str(settings.tls.key or ""),
            tls_client_ca=str(settings.tls.client_ca or ""),
            log_level=self._log_settings.level,
            log_format=self._log_settings.format,
        )

    async def _keep(self, process: _Process, backend: StreamBackend) -> None:
        """Have one that serves, until the daemon stops."""
        loop = asyncio.get_running_loop()
        pause_s, since = FIRST_PAUSE_S, loop.time()
        while True:
            await self._watch(process)
            if self._process is not process:
                return  # it was stopped
            process.child.kill()
            ending = await process.child.wait()
            log.error("the streaming process ended, its sessions with it", how=ending.describe())
            if loop.time() - since >= LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            while not self._is_stopped():
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                try:
                    process = await self._launch(backend)
                except CriShimError as error:
                    log.error("no streaming process", error=str(error), next_try_s=pause_s)
                    continue
                if self._is_stopped():  # meanwhile
                    await process.end(0.0)
                    return
                self._process = process
                log.info("streaming server again", pid=process.child.pid)
                since = loop.time()
                break

    def _is_stopped(self) -> bool:
        return self._listener is None

    async def _watch(self, process: _Process) -> None:
        """Return when it is gone, or was ended because it doesn't answer."""
        while True:
            if await settled(process.gone, PING_INTERVAL_S):
                return
            if process.unanswered >= PINGS_UNANSWERED:
                log.error(
                    "the streaming process does not answer and is ended", pid=process.child.pid
                )
                process.hang_up()
                return
            process.unanswered += 1
            process.send(ipc.Ping())


def _listen(address: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    try:
        # A wildcard of IPv6 takes IPv4 as well.
        return socket.create_server(
            (address, port),
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=address == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        raise ConfigError(
            f"streaming.address, streaming.port: cannot listen on {address} port {port}: "
            f"{error.strerror}; see whether something else does"
        ) from error


def _reachable(address: str) -> str:
    """The address as a URL has it; for a wildcard, the node's own as its routes have it."""
    if address in _ANY_ADDRESS:
        families = (socket.AF_INET, socket.AF_INET6) if address == "::" else (socket.AF_INET,)
        address = next(filter(None, map(_source_address, families)), "127.0.0.1")
    return f"[{address}]" if ":" in address else address


def _source_address(family: socket.AddressFamily) -> str | None:
    """Ours, for what would leave the node."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_OUTSIDE[family], 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
