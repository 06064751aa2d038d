"""What port-forwards lead to: TCP servers inside a pod's network, served by the test itself, on its own loop."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cri_shim.host.namespaces import run_in_netns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BACKLOG = 4096


@asynccontextmanager
async def serving(netns: Path, serve: Serve, *, family: int = socket.AF_INET) -> AsyncIterator[int]:
    """Serve each connection in the pod's network with `serve`, which may fail as it likes; the port."""

    def listen() -> socket.socket:
        address = "127.0.0.1" if family == socket.AF_INET else "::1"
        return socket.create_server((address, 0), family=family, backlog=BACKLOG)

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (OSError, EOFError):
            pass  # the other side went first: whoever minds looks at what arrived
        except asyncio.CancelledError:
            pass  # the test is over; asyncio's streams would only complain of it
        finally:
            writer.transport.abort()

    listener = await asyncio.to_thread(run_in_netns, netns, listen)
    port: int = listener.getsockname()[1]
    server = await asyncio.start_server(serve_one, sock=listener, limit=256 << 10)
    try:
        yield port
    finally:
        server.close()
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and end when the other side has."""
    while data := await reader.read(64 << 10):
        writer.write(data)
        await writer.drain()
