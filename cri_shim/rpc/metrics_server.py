"""HTTP/1.1 server for `/metrics`, `/healthz` and `/readyz`: one response per connection.

Rules:
- It serves three paths with GET and HEAD, reads no body and keeps no connection alive. Any other request gets an error
  status, and the connection ends.
- The head is parsed as the streaming server's (`streaming/wire/http1`, which has h11 do it).
- The request head is bounded in bytes and in time, and the number of connections is bounded: every process of the node
  may be able to connect.
- The metrics page is generated on the event loop. That takes milliseconds, and the collectors are only changed there.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from cri_shim import metrics
from cri_shim.errors import ConfigError
from cri_shim.streaming.wire.errors import ProtocolError
from cri_shim.streaming.wire.http1 import TEXT, RequestReader, response_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.config.values import HostPort
    from cri_shim.streaming.wire.http1 import Request

log = structlog.get_logger()

MAX_HEAD_BYTES: Final = 8192
MAX_CONNECTIONS: Final = 32
HEAD_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 10.0


class Answer(NamedTuple):
    """An HTTP response."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = TEXT


class MetricsServer:
    """The HTTP server on `metrics.address`."""

    def __init__(self, address: HostPort, *, not_ready: Callable[[], str]) -> None:
        """`not_ready` returns why the daemon is not ready, or "" if it is."""
        self._address = address
        self._not_ready = not_ready
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        """The port that the server listens on, once started."""
        assert self._server is not None  # noqa: S101 - callers ask after `start`
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen. Raises: ConfigError if the address cannot be bound."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._address.host, self._address.port, limit=MAX_HEAD_BYTES
            )
        except OSError as error:
            raise ConfigError(
                f"metrics.address: cannot bind {self._address}: {error.strerror or error}; "
                'set another address, or "" to serve no metrics'
            ) from error

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def stop(self) -> None:
        """Stop listening and reset open connections: Prometheus repeats a scrape."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for writer in self._connections.values():
                writer.transport.abort()
            if self._connections:
                await asyncio.wait(list(self._connections))
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as one
        self._connections[task] = writer
        try:
            if len(self._connections) <= MAX_CONNECTIONS:
                answer, is_head = await self._answer(reader)
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    writer.write(_encoded(answer, head_only=is_head))
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # the client disconnected, or does not read its response
        finally:
            writer.transport.abort()
            del self._connections[task]

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[Answer, bool]:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                request = await _request(reader)
        except TimeoutError:
            return Answer(HTTPStatus.REQUEST_TIMEOUT), False
        except ProtocolError as error:
            return Answer(HTTPStatus(error.http_status)), False
        if request.method not in ("GET", "HEAD"):
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED), False
        return self._answer_to(request.path), request.method == "HEAD"

    def _answer_to(self, path: str) -> Answer:
        match path:
            case "/metrics":
                return Answer(HTTPStatus.OK, metrics.exposition(), metrics.CONTENT_TYPE)
            case "/healthz":
                # An answer proves that the event loop turns; that is all that liveness means here.
                return Answer(HTTPStatus.OK, b"ok\n")
            case "/readyz":
                why = self._not_ready()
                if why:
                    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n".encode())
                return Answer(HTTPStatus.OK, b"ok\n")
            case _:
                return Answer(HTTPStatus.NOT_FOUND, b"see /metrics, /healthz and /readyz\n")


async def _request(reader: asyncio.StreamReader) -> Request:
    """The request's head. Raises: ProtocolError."""
    requests = RequestReader(max_bytes=MAX_HEAD_BYTES)
    while data := await reader.read(MAX_HEAD_BYTES):
        if (request := requests.receive_data(data)) is not None:
            return request
    raise ProtocolError("the connection ended within the request head")


def _encoded(answer: Answer, *, head_only: bool) -> bytes:
    body = answer.body or f"{answer.status.phrase}\n".encode()
    allow = [("Allow", "GET, HEAD")] if answer.status is HTTPStatus.METHOD_NOT_ALLOWED else []
    head = response_head(answer.status, answer.content_type, body, allow)
    return head if head_only else head + body
