from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cri_shim.config.values import HostPort
from cri_shim.errors import ConfigError
from cri_shim.rpc import metrics_server
from cri_shim.rpc.metrics_server import MAX_CONNECTIONS, MAX_HEAD_BYTES, MetricsServer
from tests.fakes.clock import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Health:
    def __init__(self) -> None:
        self.why_not = ""

    def __call__(self) -> str:
        return self.why_not


@asynccontextmanager
async def serving(health: Health | None = None) -> AsyncIterator[MetricsServer]:
    server = MetricsServer(HostPort("127.0.0.1:0"), not_ready=health or Health())
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass


async def ask(server: MetricsServer, request: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            raw = await reader.read()
    finally:
        await hang_up(writer)
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    return int(status.split()[1]), headers, body


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n".encode()


async def test_metrics_are_in_prometheus_own_format() -> None:
    async with serving() as server:
        status, headers, body = await ask(server, get("/metrics"))
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert headers["Content-Length"] == str(len(body))
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"cri_shim_build_info", "cri_shim_grpc_requests_in_flight"} <= names


async def test_health_and_readiness_are_told_apart() -> None:
    health = Health()
    health.why_not = "recovering"
    async with serving(health) as server:
        assert (await ask(server, get("/healthz")))[0] == 200
        status, _, body = await ask(server, get("/readyz"))
        assert (status, body) == (503, b"recovering\n")
        health.why_not = ""
        assert (await ask(server, get("/readyz?verbose")))[0] == 200


async def test_head_answers_without_the_body() -> None:
    async with serving() as server:
        status, headers, body = await ask(server, get("/healthz", "HEAD"))
    assert (status, headers["Content-Length"], body) == (200, "3", b"")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), 404),
        (get("/metrics/../healthz"), 404),
        (get("/metrics", "POST"), 405),
        (get("/metrics", "get"), 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 505),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
async def test_anything_else_gets_a_status_and_the_end(request_: bytes, status: int) -> None:
    async with serving() as server:
        assert (await ask(server, request_))[0] == status
        assert (await ask(server, get("/healthz")))[0] == 200


async def test_405_says_what_is_allowed() -> None:
    async with serving() as server:
        _, headers, _ = await ask(server, get("/metrics", "PUT"))
    assert headers["Allow"] == "GET, HEAD"


async def test_a_request_that_never_ends_is_cut_off(clock: MovableClock) -> None:
    async with serving() as server:
        asking = asyncio.ensure_future(ask(server, b"GET /metrics HT"))
        await until(lambda: server.connections)
        clock.move(metrics_server.HEAD_TIMEOUT_S)
        assert (await asking)[0] == 408


async def test_connections_are_bounded_and_the_server_recovers() -> None:
    async with serving() as server:
        idle = [
            await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS)
        ]
        await until(lambda: server.connections == MAX_CONNECTIONS)
        with pytest.raises((ConnectionError, IndexError)):
            await ask(server, get("/healthz"))
        for _, writer in idle:
            await hang_up(writer)
        await until(lambda: server.connections == 0)
        assert (await ask(server, get("/healthz")))[0] == 200


async def test_a_stop_does_not_wait_for_idle_connections() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await until(lambda: server.connections == 1)
        async with asyncio.timeout(20):
            await server.stop()
            assert await reader.read() == b""
        await hang_up(writer)


async def test_an_address_in_use_is_named() -> None:
    async with serving() as server:
        second = MetricsServer(HostPort(f"127.0.0.1:{server.port}"), not_ready=Health())
        with pytest.raises(ConfigError, match=rf"metrics\.address: .*:{server.port}"):
            await second.start()
