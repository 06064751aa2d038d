"""An HTTP proxy between two network namespaces: it listens in its own one, and connects from another.

    python3 -m tests.harness.outside_proxy PORT FD

FD is an open network namespace. A test that must not touch the machine's network can still install packages from it:
apt and pip are given http://127.0.0.1:PORT. One request per connection, or a tunnel; needs nothing but the standard
library, since it runs before anything is installed.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import socket
import sys

MAX_HEAD_BYTES = 64 << 10
CLONE_NEWNET = 0x40000000
_REQUEST = re.compile(rb"(\S+) http://([^/:\s]+)(?::(\d+))?(/\S*) (HTTP/1\.[01])\r\n")
_TUNNEL = re.compile(rb"CONNECT ([^\s:]+):(\d+) HTTP/1\.[01]\r\n")
_CONNECTION = re.compile(rb"\r\n(?:Proxy-)?Connection:[^\r\n]*", re.IGNORECASE)


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client: a tunnel, or one request whose answer ends with the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if match := _TUNNEL.match(head):
            far_reader, far_writer = await asyncio.open_connection(match[1].decode(), int(match[2]))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        elif match := _REQUEST.match(head):
            method, host, port, path, version = match.groups()
            far_reader, far_writer = await asyncio.open_connection(host.decode(), int(port or 80))
            rest = _CONNECTION.sub(b"", b"\r\n" + head[match.end() :])
            far_writer.write(b"%s %s %s\r\nConnection: close%s" % (method, path, version, rest))
        else:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        # Either end went away, or the far one can't be reached: the client sees its connection end.
        pass
    finally:
        writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    finally:
        target.close()


async def main(port: int, outside: int) -> None:
    """Listen here, then move outside and serve."""
    listening = socket.create_server(("127.0.0.1", port))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(outside, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(outside)
    server = await asyncio.start_server(serve_one, sock=listening, limit=MAX_HEAD_BYTES)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
