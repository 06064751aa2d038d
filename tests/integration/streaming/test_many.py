"""Many sessions, one after the other and at once, and many connections through one: nothing of them stays.

A few in each run; 500, 100 and 10,000 when asked for: `pytest -m "integration and slow" tests/integration/streaming`.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from tests.harness.streaming_sessions import (
    PORT_FORWARD,
    REMOTE_COMMAND,
    Protocol,
    port_forward,
    remote_command,
)
from tests.integration.streaming.footprint import Footprint, assert_no_growth
from tests.integration.streaming.targets import echo, serving
from tests.integration.streaming.within import within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.harness.daemon import Daemon
    from tests.harness.streaming_sessions import PortForward
    from tests.integration.scene import Pod

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

COUNTS = [
    pytest.param(40, 20, id="40-and-20"),
    pytest.param(500, 100, id="500-and-100", marks=pytest.mark.slow),
]
HALF_CLOSING = [protocol for protocol in REMOTE_COMMAND if protocol.has_half_close]
MEMORY_MIB = 8.0
"""What an allocator may have kept. A session that were kept whole has a tenth of it at least."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST."""


def run_many(
    daemon: Daemon, in_turn: int, at_once: int, one: Callable[[int], Awaitable[None]]
) -> None:
    """So many sessions, and half as many to begin with: what only the first ones bring is there then."""

    async def all_at_once(count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(_awaited(one(number)))

    async def all_of_them() -> None:
        await all_at_once(at_once)
        before = await asyncio.to_thread(_settled, daemon)
        for number in range(in_turn):
            await one(number)
        await all_at_once(at_once)
        await asyncio.to_thread(assert_no_growth, daemon, before, memory_mib=MEMORY_MIB)

    within(30 + (in_turn + at_once) / 2, all_of_them())


async def _awaited(work: Awaitable[None]) -> None:
    await work


def _settled(daemon: Daemon) -> Footprint:
    """What it holds once nothing of what was is under way: the same twice."""
    earlier = Footprint.of(daemon)
    while (now := Footprint.of(daemon)).descriptors != earlier.descriptors or now.sessions:
        earlier = now
    return now


@pytest.mark.parametrize(("in_turn", "at_once"), COUNTS)
def test_many_execs_leave_nothing(
    daemon: Daemon, pod: Pod, container: str, in_turn: int, at_once: int
) -> None:
    async def one(number: int) -> None:
        protocol = HALF_CLOSING[number % len(HALF_CLOSING)]
        tty = number % 5 == 4
        url = pod.client.exec_url(
            container, "sh", "-c", "read line; echo $line; exit 3", stdin=True, tty=tty
        )
        async with await remote_command(
            url, protocol, stdin=True, stdout=True, stderr=True, tty=tty
        ) as command:
            word = secrets.token_hex(16).encode()
            await command.write(word + b"\n")
            said = await command.read_all()
            assert said == (word + b"\n" if not tty else (word + b"\r\n") * 2)
            assert await command.exit_code() == 3

    run_many(daemon, in_turn, at_once, one)


@pytest.mark.parametrize(("in_turn", "at_once"), COUNTS)
def test_many_attached_clients_leave_nothing(
    daemon: Daemon, pod: Pod, in_turn: int, at_once: int
) -> None:
    config = pod.container("sh", "-c", "while read line; do echo heard $line; done")
    config.stdin = True
    container = pod.start(config)

    async def one(number: int) -> None:
        protocol = REMOTE_COMMAND[number % len(REMOTE_COMMAND)]
        url = pod.client.attach_url(container, stdin=True)
        async with await remote_command(
            url, protocol, stdin=True, stdout=True, stderr=True
        ) as command:
            word = secrets.token_hex(16).encode()
            await command.write(word + b"\n")
            said = b""
            while word not in said:  # among what the others hear
                data = await command.read()
                assert data, f"the end came before {word!r}: {said[-100:]!r}"
                said += data
            assert b"heard " + word in said

    run_many(daemon, in_turn, at_once, one)
    assert pod.client.status(container).status.exit_code == 0
    pod.client.stop(container)
    pod.client.remove(container)


@pytest.mark.parametrize(("in_turn", "at_once"), COUNTS)
def test_many_port_forwards_leave_nothing(
    daemon: Daemon, pod: Pod, in_turn: int, at_once: int
) -> None:
    async def all_of_them() -> None:
        async with serving(pod.netns, echo) as port:
            await asyncio.to_thread(run_many, daemon, in_turn, at_once, lambda n: one(n, port))

    async def one(number: int, port: int) -> None:
        protocol = PORT_FORWARD[number % len(PORT_FORWARD)]
        url = pod.client.port_forward_url(pod.id, port)
        async with await port_forward(url, protocol, [port]) as session:
            connection = await session.connect(port)
            word = secrets.token_bytes(16)
            await connection.write(word)
            said = b""
            while len(said) < len(word):
                said += await connection.read()
            assert said == word
            if number % 3:
                return  # gone without a word
            if protocol.has_half_close:
                await connection.end()
                assert await connection.read_all() == b""
                assert await connection.error_text() == ""
            await session.streams.close()

    within(60 + in_turn, all_of_them())


@pytest.mark.parametrize(
    "count", [pytest.param(500, id="500"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("protocol", PORT_FORWARD[:2], ids=str)
def test_resets_among_many_connections_of_one_session_hurt_no_other(
    daemon: Daemon, pod: Pod, protocol: Protocol, count: int
) -> None:
    choice = random.Random(7)
    pool = os.urandom(1 << 16)
    at_once = asyncio.Semaphore(64)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        order = await reader.readexactly(1)
        if order == b"R":  # half an answer, and gone
            writer.write(await reader.readexactly(8))
            await writer.drain()
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        else:
            await echo(reader, writer)

    async def whole(session: PortForward, port: int, data: bytes) -> None:
        connection = await session.connect(port)
        await connection.write(b"E")
        await connection.write(data)
        await connection.end()
        assert await connection.read_all() == data
        assert await connection.error_text() == ""
        connection.forget()

    async def reset_by_target(session: PortForward, port: int, data: bytes) -> None:
        connection = await session.connect(port)
        await connection.write(b"R" + data)
        said = await connection.read_all()
        assert data.startswith(said)
        assert connection.was_reset()
        connection.forget()

    async def reset_by_client(session: PortForward, port: int, data: bytes) -> None:
        connection = await session.connect(port)
        await connection.write(b"E" + data)
        if choice.random() < 0.5:
            await connection.read()
        await connection.reset()
        connection.forget()

    kinds = [whole] * 8 + [reset_by_target, reset_by_client]

    async def one(session: PortForward, port: int) -> None:
        start, size = choice.randrange(len(pool) // 2), int(2 ** choice.uniform(3, 15))
        async with at_once:
            await choice.choice(kinds)(session, port, pool[start : start + size])

    async def all_of_them() -> None:
        async with serving(pod.netns, serve) as port:
            url = pod.client.port_forward_url(pod.id)
            async with await port_forward(url, protocol) as session:
                await whole(session, port, b"first")
                before = await asyncio.to_thread(Footprint.of, daemon)
                async with asyncio.TaskGroup() as group:
                    for _ in range(count):
                        group.create_task(one(session, port))
                await asyncio.to_thread(assert_no_growth, daemon, before, memory_mib=MEMORY_MIB)
                await whole(session, port, b"last")

    within(60 + count / 50, all_of_them())
