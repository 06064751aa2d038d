"""Clients that never read cost a bounded amount, and disturb nobody: log, reopening, exit and stop go on as ever."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.streaming.wire.spdy import SpdyConnection
from tests.harness.slowness import SLOWNESS
from tests.harness.streaming_sessions import (
    PORT_FORWARD,
    SPDY,
    WEBSOCKET,
    SpdyStreams,
    connect,
    port_forward,
    remote_command,
)
from tests.integration.scene import processes_running, unique_seconds, wait_until, written
from tests.integration.streaming.footprint import Footprint, assert_no_growth, sessions
from tests.integration.streaming.targets import echo, serving
from tests.integration.streaming.within import within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.streaming.wire.buffers import Buffer
    from tests.harness.daemon import Daemon
    from tests.harness.streaming_sessions import ClientStreams, RemoteCommand
    from tests.integration.scene import Pod

pytestmark = pytest.mark.integration

CLIENTS = 6
MIB_OF_A_CLIENT = 4.0
"""What a session and the kernel's buffers may hold of one."""
KEPT_MIB = 24.0
"""What the allocator may keep, until it is used again, of what was held for targets."""
SOON_S = 5.0 * SLOWNESS


async def blocks(write: Callable[[Buffer], Awaitable[None]], data: bytes, within_s: float) -> bool:
    """Write until the other side takes no more; whether it came to that, and not to an error."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                await write(data)
    except TimeoutError:
        return True


async def hanging_up(work: Callable[[AsyncExitStack], Awaitable[None]]) -> None:
    """Also when it fails."""
    async with AsyncExitStack() as stack:
        await work(stack)


def reopen(pod: Pod, container: str) -> None:
    request = api.ReopenContainerLogRequest(container_id=container)
    pod.client.runtime.ReopenContainerLog(request, timeout=SOON_S)


def test_an_exec_whose_output_nobody_takes_waits_and_stops_with_its_container(
    daemon: Daemon, pod: Pod
) -> None:
    container = pod.sleeper()
    mark = unique_seconds()

    async def deaf(number: int) -> RemoteCommand:
        url = pod.client.exec_url(container, "yes", mark, tty=number % 3 == 2)
        command = await remote_command(
            url,
            SPDY if number % 2 else WEBSOCKET,
            stdin=False,
            stdout=True,
            stderr=True,
            tty=number % 3 == 2,
        )
        command.streams.stop_reading()
        return command

    async def all_of_them(stack: AsyncExitStack) -> None:
        before = Footprint.of(daemon)
        clients = [await stack.enter_async_context(await deaf(n)) for n in range(CLIENTS)]
        await asyncio.sleep(0.5)
        assert len(processes_running(mark)) == CLIENTS
        grown = Footprint.of(daemon).memory_mib - before.memory_mib
        assert grown < CLIENTS * MIB_OF_A_CLIENT
        assert pod.client.exec(container, "echo", "hello").stdout == b"hello\n"
        started = time.monotonic()
        await asyncio.to_thread(pod.client.stop, container)
        assert time.monotonic() - started < SOON_S
        assert pod.client.status(container).status.exit_code == 137
        assert not processes_running(mark)
        for client in clients:
            await client.streams.hang_up()
        pod.client.remove(container)
        await asyncio.to_thread(assert_no_growth, daemon, before, memory_mib=8)

    within(60, hanging_up(all_of_them))


def test_attached_clients_that_never_read_hold_up_neither_log_nor_reopening_nor_exit(
    daemon: Daemon, pod: Pod
) -> None:
    rounds, piece = 40, 512 << 10
    script = (
        f"for i in $(seq {rounds}); do read go; head -c {piece} /dev/zero | tr '\\0' x; echo; done"
    )
    config = pod.container("sh", "-c", f"{script}; read on; echo after; exit 5")
    config.stdin = True
    container = pod.start(config)
    log = Path(pod.client.status(container).status.log_path)

    async def attached(number: int) -> RemoteCommand:
        url = pod.client.attach_url(container, stdin=True)
        protocol = SPDY if number % 2 else WEBSOCKET
        return await remote_command(url, protocol, stdin=True, stdout=True, stderr=True)

    async def all_of_them(stack: AsyncExitStack) -> None:
        before = Footprint.of(daemon)
        deaf = [await stack.enter_async_context(await attached(n)) for n in range(CLIENTS)]
        for client in deaf:
            client.streams.stop_reading()
        async with await attached(0) as listening:
            heard = 0
            for number in range(1, rounds + 1):
                await listening.write(b"go\n")
                while heard < number * (
                    piece + 1
                ):  # or it would fall behind, and be cut off like the others
                    data = await listening.read()
                    assert data
                    heard += len(data)
            assert heard == rounds * (piece + 1)
            wait_until(lambda: len(written(log)) == heard, timeout_s=SOON_S)
            grown = Footprint.of(daemon).memory_mib - before.memory_mib
            assert grown < CLIENTS * MIB_OF_A_CLIENT
            log.rename(log.with_suffix(".1"))
            await asyncio.to_thread(reopen, pod, container)
            await listening.write(b"on\n")
            assert await listening.read_all() == b"after\n"
            assert await listening.exit_code() == 0  # of the attach, that is
        status = await asyncio.to_thread(pod.client.wait_exited, container, timeout_s=SOON_S)
        assert status.exit_code == 5
        assert written(log) == b"after\n"
        for client in deaf:
            await client.streams.hang_up()
        log.unlink()
        log.with_suffix(".1").unlink()
        pod.client.remove(container)
        await asyncio.to_thread(assert_no_growth, daemon, before, memory_mib=8)

    within(60, hanging_up(all_of_them))


def test_a_forwarded_connection_that_nobody_reads_holds_its_target_and_nobody_else(
    daemon: Daemon, pod: Pod
) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    async def all_of_them(stack: AsyncExitStack) -> None:
        before = Footprint.of(daemon)
        clients: list[ClientStreams] = []
        async with (
            serving(pod.netns, pour) as pouring,
            serving(pod.netns, echo) as echoing,
        ):
            for protocol in PORT_FORWARD * 2:
                url = pod.client.port_forward_url(pod.id, pouring)
                session = await port_forward(url, protocol, [pouring])
                await stack.enter_async_context(session)
                await session.connect(pouring)
                session.streams.stop_reading()
                clients.append(session.streams)
            at_first = -1
            while sent > at_first:  # for ever, should somebody take what no client does
                at_first = sent
                await asyncio.sleep(0.3)
            grown = Footprint.of(daemon).memory_mib - before.memory_mib
            assert grown < len(clients) * MIB_OF_A_CLIENT
            url = pod.client.port_forward_url(pod.id)
            async with await port_forward(url, PORT_FORWARD[0]) as session:
                connection = await session.connect(echoing)
                await connection.write(b"hello")
                await connection.end()
                assert await connection.read_all() == b"hello"
            for streams in clients:
                await streams.hang_up()
        await asyncio.to_thread(assert_no_growth, daemon, before, memory_mib=8)

    within(60, hanging_up(all_of_them))


def test_a_target_that_never_reads_stops_its_client_and_nobody_else(
    daemon: Daemon, pod: Pod
) -> None:
    ignored = asyncio.Event()

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ignored.wait()

    async def fill(stack: AsyncExitStack, url: str, port: int) -> ClientStreams:
        session = await stack.enter_async_context(await port_forward(url, PORT_FORWARD[0]))
        connection = await session.connect(port)
        assert await blocks(connection.write, bytes(1 << 16), within_s=0.3)
        return session.streams

    async def all_of_them(stack: AsyncExitStack) -> None:
        before = Footprint.of(daemon)
        async with (
            serving(pod.netns, ignore) as ignoring,
            serving(pod.netns, echo) as echoing,
        ):
            urls = [pod.client.port_forward_url(pod.id) for _ in range(4)]
            filled = await asyncio.gather(*(fill(stack, url, ignoring) for url in urls))
            grown = Footprint.of(daemon).memory_mib - before.memory_mib
            assert grown < 2 * len(filled) * MIB_OF_A_CLIENT
            url = pod.client.port_forward_url(pod.id)
            async with await port_forward(url, PORT_FORWARD[0]) as session:
                connection = await session.connect(echoing)
                await connection.write(b"hello")
                await connection.end()
                assert await connection.read_all() == b"hello"
            for streams in filled:
                await streams.break_off()
            ignored.set()
        await asyncio.to_thread(assert_no_growth, daemon, before, memory_mib=KEPT_MIB)

    within(60, hanging_up(all_of_them))


def test_a_flood_of_pings_by_a_client_that_never_reads_is_not_answered_without_end(
    daemon: Daemon, pod: Pod, container: str
) -> None:
    async def all_of_them(stack: AsyncExitStack) -> None:
        before = Footprint.of(daemon)
        url = pod.client.exec_url(container, "sleep", "1000", stdin=True)
        streams = await stack.enter_async_context(await connect(url, SPDY))
        assert isinstance(streams, SpdyStreams)
        streams.stop_reading()
        flood = SpdyConnection(client=True)
        for _ in range(10_000):
            flood.ping()
        pings = b"".join(flood.data_to_send())
        assert await blocks(streams.send_raw, pings, within_s=1.0)
        grown = Footprint.of(daemon).memory_mib - before.memory_mib
        assert grown < 2 * MIB_OF_A_CLIENT
        assert sessions(daemon) == before.sessions + 1
        await streams.hang_up()
        await asyncio.to_thread(assert_no_growth, daemon, before, memory_mib=8)

    within(60, hanging_up(all_of_them))
