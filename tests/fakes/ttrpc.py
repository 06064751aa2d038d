"""A ttrpc server on a socket of the test's, and a client of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cri_shim.background import Background
from cri_shim.ttrpc.client import Client
from cri_shim.ttrpc.server import Server
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cri_shim.ttrpc.server import Services


@asynccontextmanager
async def serving(services: Services, socket: Path) -> AsyncIterator[Server]:
    """Serve for the block."""
    background = Background()
    server = Server(services, background)
    listening = await asyncio.start_unix_server(server.serve, str(socket))
    try:
        yield server
    finally:
        listening.close()
        server.close()
        await background.close(0)
        await turn_over()


@asynccontextmanager
async def client_of(services: Services, socket: Path) -> AsyncIterator[Client]:
    """A client of them, for the block."""
    async with serving(services, socket):
        client = await Client.connect(socket, {"k": "v"})
        try:
            yield client
        finally:
            client.close()
            await turn_over()
