"""The daemon ends, in order or not, while clients stream that never read: it isn't held up, and nothing is left."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.harness.slowness import SLOWNESS
from tests.harness.streaming_sessions import (
    PORT_FORWARD,
    SPDY,
    WEBSOCKET,
    port_forward,
    remote_command,
)
from tests.integration.scene import Pod, processes_running, unique_seconds, wait_until
from tests.integration.streaming.targets import serving
from tests.integration.streaming.within import within

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon
    from tests.harness.streaming_sessions import ClientStreams

STOP_S = 15.0 * SLOWNESS
"""Less than what a service manager gives, far less than what a client is waited for that still may read."""


@pytest.mark.parametrize("ending", ["stop", "kill9"])
def test_sessions_whose_clients_never_read_hold_up_no_end_and_no_start(
    crash_daemon: Daemon, image: str, ending: str
) -> None:
    daemon, client = crash_daemon, crash_daemon.client
    pod = Pod.run(client, image)
    flood = "head -c 8000000 /dev/zero | tr '\\0' x; echo"
    config = pod.container("sh", "-c", f"read go; {flood}; while read line; do echo $line; done")
    config.stdin = True
    talker, sleeper = pod.start(config), pod.sleeper()
    mark = unique_seconds()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    async def deaf_sessions(port: int) -> list[ClientStreams]:
        found = []
        for protocol in (SPDY, WEBSOCKET):
            url = client.exec_url(sleeper, "yes", mark)
            flooding = await remote_command(url, protocol, stdin=False, stdout=True, stderr=True)
            url = client.exec_url(sleeper, "sleep", mark)
            silent = await remote_command(url, protocol, stdin=False, stdout=True, stderr=True)
            url = client.attach_url(talker, stdin=True)
            attached = await remote_command(url, protocol, stdin=True, stdout=True, stderr=True)
            await attached.write(b"go\n")
            found += [flooding.streams, silent.streams, attached.streams]
        for protocol in PORT_FORWARD:
            session = await port_forward(client.port_forward_url(pod.id, port), protocol, [port])
            await session.connect(port)
            found.append(session.streams)
        for streams in found:
            streams.stop_reading()
        return found

    async def end_amid_sessions() -> None:
        async with AsyncExitStack() as stack, serving(pod.netns, pour) as port:
            for streams in await deaf_sessions(port):
                await stack.enter_async_context(streams)
            await asyncio.to_thread(wait_until, lambda: len(processes_running(mark)) == 4)
            started = time.monotonic()
            await asyncio.to_thread(getattr(daemon, ending))
            assert time.monotonic() - started < STOP_S

    within(60, end_amid_sessions())
    daemon.start()
    wait_until(lambda: not processes_running(mark))
    assert client.status(talker).status.exit_code == client.status(sleeper).status.exit_code == 0
    assert client.exec(sleeper, "echo", "here").stdout == b"here\n"

    async def talk() -> bytes:
        url = client.attach_url(talker, stdin=True)
        async with await remote_command(url, SPDY, stdin=True, stdout=True, stderr=True) as command:
            await command.write(b"again\n")
            said = b""
            while not said.endswith(b"\n"):
                said += await command.read()
            return said

    assert within(20, talk()) == b"again\n"
