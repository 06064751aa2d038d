"""The daemon's gRPC servers: binds the listeners, registers the services, and stops them in order.

Rules:
- Unix sockets serve every service. tcp:// listeners leave out services marked `unix_only`, and require mutual TLS.
- The sockets answer from `start` on, so that a client can tell a daemon that recovers from one that does not run. Until
  `set_ready` the health service answers NOT_SERVING, and the gate refuses calls.
- `stop` refuses new calls, waits for the running ones, and only then closes the sockets. The work of a call is owned by
  `sandbox` and `image`: a call that is cancelled here loses its answer, not its effect.
- The caller holds a lock for each socket path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio

from cri_shim.errors import ConfigError
from cri_shim.rpc.interceptor import CallInterceptor
from cri_shim.rpc.reflection import ReflectionHandler
from cri_shim.rpc.socket_file import SocketFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.config.model import SocketSettings, TlsSettings
    from cri_shim.config.values import ListenUrl
    from cri_shim.rpc.gate import Gate
    from cri_shim.rpc.handlers import Service
    from cri_shim.rpc.request_budget import RequestBudget

log = structlog.get_logger()

MAX_LISTENERS: Final = 10
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_LAST_WORDS_S: Final = 0.5
"""Grace for responses that are being sent, and for Watch calls of the health service, which never end themselves."""


class Listeners:
    """All listeners of one daemon."""

    def __init__(
        self,
        urls: Sequence[ListenUrl],
        services: Sequence[Service],
        *,
        gate: Gate,
        budget: RequestBudget,
        socket: SocketSettings,
        tls: TlsSettings,
        max_message_bytes: int,
    ) -> None:
        """Check the listeners and read the TLS files; bind nothing yet.

        Raises: ConfigError for too many or duplicate listeners, and for incomplete or unreadable TLS files.
        """
        if not 1 <= len(urls) <= MAX_LISTENERS:
            raise ConfigError(f"listen: {len(urls)} listeners; 1 to {MAX_LISTENERS} are allowed")
        if len(set(urls)) < len(urls):
            raise ConfigError("listen: the same address is listed twice: remove one of the entries")
        self._gate = gate
        self._budget = budget
        self._tls = tls
        self._max_message_bytes = max_message_bytes
        self._services = tuple(services)
        self._health = health_aio.HealthServicer()
        self._files = [
            SocketFile(url.socket_path, mode=socket.mode, group=socket.group)
            for url in urls
            if url.socket_path is not None
        ]
        self._tcp_addresses = [url.tcp_address for url in urls if url.tcp_address is not None]
        self._tcp_ports: list[int] = []
        self._servers: list[grpc.aio.Server] = []
        self._credentials = self._tls_credentials() if self._tcp_addresses else None

    @property
    def tcp_ports(self) -> Sequence[int]:
        """Ports of the tcp:// listeners in their order, once started; for port 0 the one the kernel chose."""
        return self._tcp_ports

    async def start(self) -> None:
        """Bind every listener and serve on it, not ready yet. On failure close everything again.

        Raises: ConfigError or AlreadyExistsError naming the listener.
        """
        await self._set_health(_NOT_SERVING)
        try:
            if self._files:
                await self._start_unix()
            if self._tcp_addresses:
                await self._start_tcp()
        except BaseException:
            await self._take_down(grace_s=None)
            raise
        log.info(
            "listening",
            sockets=[str(file.path) for file in self._files],
            tcp=[str(address) for address in self._tcp_addresses],
        )

    async def set_ready(self) -> None:
        """Admit calls, and answer SERVING to health checks. Called once recovery is complete."""
        self._gate.open()
        await self._set_health(_SERVING)

    async def stop(self, grace_s: float) -> int:
        """Let running calls end within `grace_s` seconds, then close every listener.

        Returns the number of calls that were cancelled.
        """
        await self._health.enter_graceful_shutdown()
        cut_off = await self._gate.drain(grace_s)
        if cut_off:
            log.warning(
                "cancelling calls that did not end in time", calls=cut_off, waited_s=grace_s
            )
        await self._take_down(grace_s=None if cut_off else _LAST_WORDS_S)
        return cut_off

    async def _start_unix(self) -> None:
        server = self._server(self._services)
        for file in self._files:
            file.prepare()
            _bind(str(file.path), lambda f=file: server.add_insecure_port(f"unix:{f.bind_path}"))
        await server.start()
        for file in self._files:
            file.publish()

    async def _start_tcp(self) -> None:
        credentials = self._credentials
        assert credentials is not None  # noqa: S101 - the constructor made them
        server = self._server([s for s in self._services if not s.unix_only])
        for address in self._tcp_addresses:
            self._tcp_ports.append(
                _bind(address, lambda a=address: server.add_secure_port(a, credentials))
            )
        await server.start()

    def _server(self, services: Sequence[Service]) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[
                CallInterceptor(self._gate, self._budget, max_message_bytes=self._max_message_bytes)
            ],
            options=[
                ("grpc.max_receive_message_length", self._max_message_bytes),
                # Unlimited for grpc: the interceptor answers an oversized response with a code and a sentence.
                ("grpc.max_send_message_length", -1),
                # With SO_REUSEPORT a second daemon could bind the same port, and each would get half of the calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._servers.append(server)
        server.add_generic_rpc_handlers([service.handler() for service in services])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service.name for service in services]
        server.add_generic_rpc_handlers([ReflectionHandler([*names, HEALTH_SERVICE])])
        return server

    def _tls_credentials(self) -> grpc.ServerCredentials:
        contents: dict[str, bytes] = {}
        for key in ("cert", "key", "client_ca"):
            path = getattr(self._tls, key)
            if path is None:
                raise ConfigError(
                    f"tls.{key} is not set: tcp:// listeners require mutual TLS; set it, or listen on a unix socket"
                )
            try:
                contents[key] = path.read_bytes()
            except OSError as error:
                raise ConfigError(f"tls.{key}: cannot read {path}: {error.strerror}") from error
        return grpc.ssl_server_credentials(
            [(contents["key"], contents["cert"])],
            root_certificates=contents["client_ca"],
            require_client_auth=True,
        )

    async def _set_health(self, status: Any) -> None:  # noqa: ANN401 - grpc's package has no types
        for name in ("", *(service.name for service in self._services)):
            await self._health.set(name, status)

    async def _take_down(self, *, grace_s: float | None) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(grace_s)
        for file in self._files:
            file.withdraw()


def _bind(address: str, add_port: Any) -> int:  # noqa: ANN401 - see its two callers
    try:
        port: int = add_port()
    except RuntimeError as error:
        raise ConfigError(
            f"listen: cannot bind {address}: {error}; check that no other process listens there"
        ) from error
    return port
