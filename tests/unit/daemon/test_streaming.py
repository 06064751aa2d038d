"""The server in its thread, as the daemon has it."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from cri_shim.config.model import StreamingSettings
from cri_shim.config.values import HttpUrl, IpAddress, Seconds
from cri_shim.daemon import streaming as module
from cri_shim.daemon.streaming import Streaming
from cri_shim.errors import ConfigError
from cri_shim.streaming.backend import ExecRequest
from tests.fakes.stream_backend import LocalBackend
from tests.harness.streaming_client import RemoteCommandClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

import contextlib

pytestmark = pytest.mark.asyncio
ANY_PORT = StreamingSettings(port=0)
ECHO = ExecRequest("c", ("echo", "hello"), stdin=False, stdout=True, stderr=True, tty=False)


@contextlib.asynccontextmanager
async def started(settings: StreamingSettings) -> AsyncIterator[Streaming]:
    streaming = Streaming(settings)
    backend = LocalBackend()
    await streaming.start(backend)
    try:
        yield streaming
    finally:
        await streaming.stop(1)
        backend.close()
        assert "streaming" not in {thread.name for thread in threading.enumerate()}


def run_echo(streaming: Streaming, base: str | None) -> bytes:
    with RemoteCommandClient(f"{base}/exec/{streaming.tickets.issue(ECHO)}") as client:
        return client.until_closed().stdout


async def test_the_url_is_where_it_listens() -> None:
    async with started(ANY_PORT) as streaming:
        base = streaming.base_url()
        assert base is not None
        assert base.startswith("http://127.0.0.1:")
        assert await asyncio.to_thread(run_echo, streaming, base) == b"hello\n"
    assert streaming.base_url() is None
    await streaming.stop(1)


async def test_what_stands_in_front_is_what_clients_are_told() -> None:
    settings = replace(ANY_PORT, base_url=HttpUrl("https://proxy.example/node-1/"))
    async with started(settings) as streaming:
        assert streaming.base_url() == "https://proxy.example/node-1"


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
async def test_for_a_wildcard_clients_are_told_an_address_they_can_reach(address: str) -> None:
    async with started(replace(ANY_PORT, address=IpAddress(address))) as streaming:
        base = streaming.base_url()
        assert base is not None
        assert address not in base.split("//")[1].split(":")[0]
        assert await asyncio.to_thread(run_echo, streaming, base) == b"hello\n"


async def test_without_a_way_out_the_wildcard_is_reached_over_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_source_address", lambda _family: None)
    assert module._reachable("0.0.0.0") == "127.0.0.1"
    assert module._reachable("fd00::1") == "[fd00::1]"


async def test_a_port_that_is_taken_is_the_configurations_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        streaming = Streaming(replace(ANY_PORT, port=port))
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
            await streaming.start(LocalBackend())
    assert streaming.base_url() is None
    await streaming.stop(1)


async def test_a_reload_changes_the_time_of_new_tickets() -> None:
    streaming = Streaming(ANY_PORT)
    streaming.reconfigure(replace(ANY_PORT, token_ttl_s=Seconds(5)))
    assert streaming.tickets.ttl_s == 5
