"""Runs the streaming process: its listening socket, its start and restart, and the URL for clients.

Rules:
- The streaming server is a process of its own (`streamer/process`), so that streams at full rate do not delay CRI
  calls. `sandbox/stream_backend` answers its requests.
- The daemon owns the listening socket. If the process dies or hangs, another replaces it. Its sessions are lost, but
  clients that connect meanwhile wait in the socket's queue, and tickets stay valid.
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
"""Usually the kernel's limit (net.core.somaxconn).

A client that finds the queue full retries after a second or more.
"""
START_TIMEOUT_S = 30.0
END_GRACE_S = 2.0
"""Time for the process to end, after the grace of its clients."""
PING_INTERVAL_S = 5.0
PINGS_UNANSWERED = 3
"""Unanswered pings after which the process counts as hanging."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
"""Pauses before a process is replaced. They double, and start anew after a process that ran for the longest pause."""
_ANY_ADDRESS = ("0.0.0.0", "::")
_OUTSIDE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Documentation addresses (RFC 5737, RFC 3849), to get our source address from the routes. Nothing is sent."""


class StreamBackend(Protocol):
    """Serves the requests of the process: `sandbox.stream_backend`."""

    def open(self, send: Callable[..., None]) -> None:
        """A process started. `send(packet, descriptors)` sends it a message, and takes ownership of the descriptors."""

    def close(self) -> None:
        """The process ended."""

    def handle(self, message: ipc.ToDaemon) -> None:
        """Handle a message of the process."""


class _Process:
    """One streaming process."""

    def __init__(
        self, reaper: Reaper, setup: ipc.Setup, listener: int, backend: StreamBackend
    ) -> None:
        """Start the process. Raises OSError."""
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
        """Done when the connection is closed, by either side."""
        self.unanswered = 0
        backend.open(self.send)
        self.send(setup, [os.dup(listener)])

    def send(self, message: ipc.ToStreamer, descriptors: Sequence[int] = ()) -> None:
        """Send a message with descriptors, which are closed here."""
        self._packets.send(ipc.encode(message), descriptors)

    def hang_up(self) -> None:
        """Close the connection, which ends the process, and end its sessions."""
        self._packets.close()
        self._gone()

    def _handle(self, packet: bytes, descriptors: list[int]) -> None:
        close_all(descriptors)  # the protocol has no descriptors in this direction
        try:
            message = ipc.decode_to_daemon(packet)
        except UNREADABLE_DOCUMENT as error:
            log.error("invalid message from the streaming process; restarting it", error=str(error))
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
        if self.gone.done():  # the backend may serve the next process by now
            return
        self.gone.set_result(None)
        self._backend.close()
        self._settle(UnavailableError("the streaming process ended during its start"))

    def _settle(self, error: CriShimError | None) -> None:
        if self.ready.done():
            return
        if error is None:
            self.ready.set_result(None)
        else:
            self.ready.set_exception(error)
            self.ready.exception()  # retrieved, so that asyncio does not warn if nobody waits

    async def end(self, timeout_s: float) -> None:
        """Wait `timeout_s` for the process to end, then kill it."""
        if await self.child.wait_at_most(timeout_s) is None:
            self.child.kill()
            await self.child.wait_at_most(END_GRACE_S)
        self.hang_up()


class Streaming:
    """Keeps one streaming process running. Call `start` and `stop` once."""

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
        """The base of the clients' URLs, without a final slash; None before the start and after the stop."""
        return self._url

    @property
    def pid(self) -> int | None:
        """The pid of the present process."""
        return None if self._process is None else self._process.child.pid

    @property
    def unanswered_pings(self) -> int:
        """How many pings in a row the process has not answered. At `PINGS_UNANSWERED` it is replaced."""
        return 0 if self._process is None else self._process.unanswered

    async def start(self, backend: StreamBackend) -> None:
        """Listen, and wait until the process serves. Raises ConfigError, UnavailableError."""
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
            self._url = f"{scheme}://{reachable(settings.address)}:{port}"
        log.info("streaming server", address=settings.address, url=self._url, pid=self.pid)

    def reconfigure(self, settings: StreamingSettings, log_settings: LogSettings) -> None:
        """Apply the reloadable settings."""
        self._tickets.ttl_s = settings.token_ttl_s
        self._log_settings = log_settings
        if self._process is not None:
            self._process.send(ipc.LogLevel(level=log_settings.level))

    async def stop(self, grace_s: float) -> None:
        """Stop listening, and end the process and its sessions within about `grace_s` seconds. Idempotent."""
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
        """Start a process and wait until it serves. Raises ConfigError for unusable settings, UnavailableError."""
        assert self._listener is not None  # noqa: S101 - callers listen first
        try:
            process = _Process(self._reaper, self._setup(), self._listener.fileno(), backend)
        except OSError as error:
            raise UnavailableError(f"cannot start the streaming process: {error}") from error
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
        """Replace the process whenever it ends, until `stop`."""
        loop = asyncio.get_running_loop()
        pause_s, since = FIRST_PAUSE_S, loop.time()
        while True:
            await self._watch(process)
            if self._process is not process:
                return  # `stop` ended it
            process.child.kill()
            ending = await process.child.wait()
            log.error("the streaming process ended; its sessions are lost", how=ending.describe())
            if loop.time() - since >= LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            while not self._is_stopped():
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                try:
                    process = await self._launch(backend)
                except CriShimError as error:
                    log.error(
                        "the streaming process could not be restarted",
                        error=str(error),
                        next_try_s=pause_s,
                    )
                    continue
                if self._is_stopped():  # `stop` was called during the launch
                    await process.end(0.0)
                    return
                self._process = process
                log.info("streaming process restarted", pid=process.child.pid)
                since = loop.time()
                break

    def _is_stopped(self) -> bool:
        return self._listener is None

    async def _watch(self, process: _Process) -> None:
        """Ping the process. Return when it ended, or when it counts as hanging."""
        while True:
            if await settled(process.gone, PING_INTERVAL_S):
                return
            if process.unanswered >= PINGS_UNANSWERED:
                log.error(
                    "the streaming process does not answer; restarting it", pid=process.child.pid
                )
                process.hang_up()
                return
            process.unanswered += 1
            process.send(ipc.Ping())


def _listen(address: str, port: int) -> socket.socket:
    """Bind and listen. Raises ConfigError."""
    try:
        # The IPv6 wildcard accepts IPv4 as well.
        return socket.create_server(
            (address, port),
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=address == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        raise ConfigError(
            f"streaming.address, streaming.port: cannot listen on {address} port {port}: "
            f"{error.strerror}; check that no other process listens there"
        ) from error


def reachable(address: str) -> str:
    """The host part of the clients' URL. For a wildcard address it is the node's source address."""
    if address in _ANY_ADDRESS:
        families = (socket.AF_INET, socket.AF_INET6) if address == "::" else (socket.AF_INET,)
        address = next(filter(None, map(_source_address, families)), "127.0.0.1")
    return f"[{address}]" if ":" in address else address


def _source_address(family: socket.AddressFamily) -> str | None:
    """The source address of packets that leave the node, or None without a route."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_OUTSIDE[family], 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
