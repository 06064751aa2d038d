"""The streaming server's part of the daemon: a loop and thread of its own, its TLS, the URL that clients get.

Rules: the server never shares the loop that answers List and Status: full-rate streams would hold those up. What the
two have in common are the tickets, and the hops that `sandbox.stream_backend` makes.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from cri_shim.host.loop_thread import LoopThread
from cri_shim.streaming.server import StreamingServer
from cri_shim.streaming.session import Limits
from cri_shim.streaming.tickets import Tickets
from cri_shim.streaming.tls import ServerTls

if TYPE_CHECKING:
    from cri_shim.config.model import StreamingSettings
    from cri_shim.streaming.backend import Backend

log = structlog.get_logger()
_ANY_ADDRESS = ("0.0.0.0", "::")
_OUTSIDE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of nobody (RFC 5737, RFC 3849), to ask the routing table for ours; nothing is sent there."""


class Streaming:
    """The server in its thread. `start` and `stop` it once."""

    def __init__(self, settings: StreamingSettings) -> None:
        self._settings = settings
        self.tickets = Tickets(settings.token_ttl_s)
        self._thread = LoopThread("streaming")
        self._server: StreamingServer | None = None
        self._url: str | None = None

    @property
    def thread(self) -> LoopThread:
        """Where the server's loop runs, once started."""
        return self._thread

    def base_url(self) -> str | None:
        """What clients call, without a slash at its end; None while the server isn't there."""
        return self._url

    async def start(self, backend: Backend) -> None:
        """Listen. Raises ConfigError."""
        settings = self._settings
        tls = None
        if settings.tls.cert is not None and settings.tls.key is not None:
            tls = ServerTls(settings.tls.cert, settings.tls.key, settings.tls.client_ca)
        server = StreamingServer(
            self.tickets,
            backend,
            Limits(settings.creation_timeout_s, settings.idle_timeout_s),
            tls=tls,
            path_prefix="" if settings.base_url is None else urlsplit(settings.base_url).path,
        )
        self._thread.start()
        try:
            await self._thread.run(server.start(settings.address, settings.port))
        except BaseException:
            await self._thread.stop()
            raise
        self._server = server
        if settings.base_url is not None:
            self._url = settings.base_url.rstrip("/")
        else:
            scheme = "http" if tls is None else "https"
            self._url = f"{scheme}://{_reachable(settings.address)}:{server.port}"
        log.info("streaming server", address=settings.address, port=server.port, url=self._url)

    def reconfigure(self, settings: StreamingSettings) -> None:
        """Take what a reload may change."""
        self.tickets.ttl_s = settings.token_ttl_s

    async def stop(self, grace_s: float) -> None:
        """Tell the sessions' clients, end within about `grace_s` seconds. Idempotent."""
        server, self._server, self._url = self._server, None, None
        if server is not None:
            await self._thread.run(server.stop(grace_s))
            await self._thread.stop()


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
