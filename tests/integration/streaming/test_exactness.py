"""Every byte arrives, in its order: random data in random pieces with pauses, each way, over every protocol.

Five megabytes in each run; a hundred when asked for: `pytest -m "integration and slow" tests/integration/streaming`.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim.streaming.wire.remotecommand import Channel
from tests.harness.streaming_sessions import (
    PORT_FORWARD,
    REMOTE_COMMAND,
    SPDY,
    WEBSOCKET,
    Protocol,
    port_forward,
    remote_command,
)
from tests.integration.streaming.targets import serving
from tests.integration.streaming.within import within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.streaming.wire.buffers import Buffer
    from tests.integration.scene import Pod

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MB = 1_000_000
SIZES = [
    pytest.param(5 * MB, id="5MB"),
    pytest.param(100 * MB, id="100MB", marks=pytest.mark.slow),
]
LONGEST_PIECE_BYTES = 1 << 20
PAUSES = 12
"""In a transfer, of up to ten milliseconds each."""


async def send(data: bytes, write: Callable[[Buffer], Awaitable[None]], seed: int) -> None:
    """In pieces from a byte to a megabyte, most of them short."""
    choice = random.Random(seed)
    view, position = memoryview(data), 0
    while position < len(data):
        size = min(int(2 ** choice.uniform(0, 20)), LONGEST_PIECE_BYTES)
        await write(view[position : position + size])
        position += size
        if choice.random() < PAUSES * size / len(data):
            await asyncio.sleep(choice.uniform(0, 0.01))


async def receive(expected: bytes, read: Callable[[], Awaitable[Buffer]], seed: int) -> None:
    """Up to the end of the stream, with pauses; fails at the first byte that is another."""
    choice = random.Random(seed)
    position = 0
    while data := await read():
        end = position + len(data)
        assert data == expected[position:end], f"other bytes from {position} to {end}"
        position = end
        if choice.random() < PAUSES * len(data) / len(expected):
            await asyncio.sleep(choice.uniform(0, 0.01))
    assert position == len(expected), f"{len(expected) - position} bytes are missing"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("protocol", REMOTE_COMMAND, ids=str)
def test_an_exec_takes_and_gives_back_every_byte_on_both_outputs(
    pod: Pod, container: str, protocol: Protocol, size: int
) -> None:
    # Where the client can't end its input, the command ends by itself.
    source = "cat" if protocol.has_half_close else f"head -c {size}"
    script = f"{source} | tee /dev/stderr; exit 7"
    data = os.urandom(size)

    async def run() -> int:
        url = pod.client.exec_url(container, "sh", "-c", script, stdin=True)
        async with await remote_command(
            url, protocol, stdin=True, stdout=True, stderr=True
        ) as command:

            async def write() -> None:
                await send(data, command.write, seed=1)
                if protocol.has_half_close:
                    await command.end_input()

            await asyncio.gather(
                write(),
                receive(data, lambda: command.read(Channel.STDOUT), seed=2),
                receive(data, lambda: command.read(Channel.STDERR), seed=3),
            )
            return await command.exit_code()

    assert within(120, run()) == 7


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("protocol", [SPDY, WEBSOCKET], ids=str)
def test_a_terminal_in_raw_mode_takes_and_gives_back_every_byte(
    pod: Pod, container: str, protocol: Protocol, size: int
) -> None:
    size //= 5  # a terminal passes on 4 KiB at a time
    script = f"stty raw -echo; echo ready; head -c {size}; exit 7"
    data = os.urandom(size)

    async def run() -> int:
        url = pod.client.exec_url(container, "sh", "-c", script, stdin=True, tty=True)
        async with await remote_command(
            url, protocol, stdin=True, stdout=True, stderr=False, tty=True
        ) as command:
            assert await command.read() == b"ready\n"
            await asyncio.gather(
                send(data, command.write, seed=1), receive(data, command.read, seed=2)
            )
            return await command.exit_code()

    assert within(120, run()) == 7


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("protocol", PORT_FORWARD, ids=str)
def test_a_forwarded_connection_carries_every_byte_both_ways_at_once(
    pod: Pod, protocol: Protocol, size: int
) -> None:
    there, back = os.urandom(size), os.urandom(size)

    async def run() -> None:
        heard = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async def write(piece: Buffer) -> None:
                writer.write(piece)
                await writer.drain()

            async def answer() -> None:
                await send(back, write, seed=3)
                if protocol.has_half_close:
                    writer.write_eof()

            left = size

            async def read() -> bytes:
                nonlocal left
                # Channels can't tell the target that the client has no more to say.
                data = await reader.read(1 << 20) if left or protocol.has_half_close else b""
                left -= len(data)
                return data

            try:
                await asyncio.gather(answer(), receive(there, read, seed=4))
            except BaseException as error:
                heard.set_exception(error)
                raise
            heard.set_result(None)

        async with serving(pod.netns, serve) as port:
            url = pod.client.port_forward_url(pod.id, port)
            async with await port_forward(url, protocol, [port]) as session:
                connection = await session.connect(port)

                async def write() -> None:
                    await send(there, connection.write, seed=1)
                    if protocol.has_half_close:
                        await connection.end()

                await asyncio.gather(write(), receive(back, connection.read, seed=2))
                await heard
                assert await connection.error_text() == ""
                assert not connection.was_reset()

    within(120, run())


def test_a_target_that_listens_on_ipv6_only_is_reached(pod: Pod) -> None:

    async def run() -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"six " + await reader.read())

        async with serving(pod.netns, serve, family=socket.AF_INET6) as port:
            url = pod.client.port_forward_url(pod.id, port)
            async with await port_forward(url, PORT_FORWARD[0]) as session:
                connection = await session.connect(port)
                await connection.write(b"hello")
                await connection.end()
                return await connection.read_all()

    assert within(20, run()) == b"six hello"
