"""The streaming process dies, hangs, or loses its daemon, amid sessions of each kind: nothing else does."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness import procs
from tests.harness.slowness import SLOWNESS
from tests.harness.streaming_sessions import PORT_FORWARD, SPDY, port_forward, remote_command
from tests.integration.scene import (
    Pod,
    container_info,
    processes_running,
    unique_seconds,
    wait_until,
    written,
)
from tests.integration.streaming.targets import serving
from tests.integration.streaming.within import within

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

SOON_S = 5.0 * SLOWNESS
FLOOD = "head -c 8000000 /dev/zero | tr '\\0' x; echo"
TALKER = f"read go; {FLOOD}; while read line; do echo $line; done; exit 5"


def streamer(daemon: Daemon) -> int:
    assert daemon.pid is not None
    [pid] = procs.streamers_of([daemon.pid])
    return pid


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def log_of(client: Client, container: str) -> Path:
    return Path(client.status(container).status.log_path)


def reopen(client: Client, container: str) -> None:
    client.runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=container))


def talker_of(pod: Pod, *, tty: bool = False) -> str:
    config = pod.container("sh", "-c", TALKER)
    config.stdin = True
    config.tty = tty
    return pod.start(config)


def test_its_death_ends_its_sessions_and_another_serves_the_next(
    crash_daemon: Daemon, image: str
) -> None:
    daemon, client = crash_daemon, crash_daemon.client
    pod = Pod.run(client, image)
    talker, sleeper = talker_of(pod), pod.sleeper()
    mark = unique_seconds()

    async def amid_sessions() -> None:
        async with AsyncExitStack() as stack, serving(pod.netns, echo) as port:
            url = client.exec_url(sleeper, "sleep", mark)
            execs = await remote_command(url, SPDY, stdin=False, stdout=True, stderr=True)
            url = client.attach_url(talker, stdin=True)
            attach = await remote_command(url, SPDY, stdin=True, stdout=True, stderr=True)
            await attach.write(b"go\n")
            url = client.port_forward_url(pod.id, port)
            forward = await port_forward(url, PORT_FORWARD[0], [port])
            await forward.connect(port)
            for streams in (execs.streams, attach.streams, forward.streams):
                await stack.enter_async_context(streams)
            waiting = client.exec_url(sleeper, "echo", "waited")  # asked for before, called after
            before = streamer(daemon)
            os.kill(before, signal.SIGKILL)
            async with asyncio.timeout(SOON_S):
                while await attach.read():
                    pass  # a client that is full of output doesn't see the end behind it
                for streams in (execs.streams, attach.streams, forward.streams):
                    await streams.ended.wait()
            async with await remote_command(
                waiting, SPDY, stdin=False, stdout=True, stderr=True
            ) as command:
                assert await command.read_all() == b"waited\n"
                assert await command.exit_code() == 0
            assert streamer(daemon) != before
            # The container's own output was never held up for long.
            log = log_of(client, talker)
            await asyncio.to_thread(wait_until, lambda: len(written(log)) == 8000001)
            url = client.attach_url(talker, stdin=True)
            async with await remote_command(
                url, SPDY, stdin=True, stdout=True, stderr=True
            ) as again:
                await again.write(b"still here\n")
                assert await again.read() == b"still here\n"

    within(60, amid_sessions())
    started = time.monotonic()
    client.stop(talker, timeout_s=1)
    client.stop(sleeper, timeout_s=1)
    assert time.monotonic() - started < SOON_S
    wait_until(lambda: not processes_running(mark))


@pytest.mark.parametrize("call", ["stop", "reopen", "exit"])
def test_while_it_hangs_nothing_waits_for_it(crash_daemon: Daemon, image: str, call: str) -> None:
    daemon, client = crash_daemon, crash_daemon.client
    pod = Pod.run(client, image)
    talker = talker_of(pod)
    log = log_of(client, talker)

    async def attached() -> None:
        url = client.attach_url(talker, stdin=True)
        async with await remote_command(url, SPDY, stdin=True, stdout=True, stderr=True) as command:
            await command.write(b"go\n")
            assert await command.read()
            with stopped(streamer(daemon)):
                await asyncio.sleep(0.5)  # by now the monitor waits for it
                started = time.monotonic()
                if call == "reopen":
                    log.rename(log.with_suffix(".1"))
                    await asyncio.to_thread(reopen, client, talker)
                    assert log.exists()
                else:
                    if call == "exit":
                        os.kill(container_info(client, talker)["pid"], signal.SIGKILL)
                        await asyncio.to_thread(client.wait_exited, talker)
                    await asyncio.to_thread(client.stop, talker)
                    assert client.status(talker).status.exit_code == 137
                assert time.monotonic() - started < SOON_S

    within(60, attached())
    assert client.exec(pod.sleeper(), "echo", "here").stdout == b"here\n"


def test_while_the_daemon_hangs_streams_go_on(crash_daemon: Daemon, image: str) -> None:
    daemon, client = crash_daemon, crash_daemon.client
    pod = Pod.run(client, image)
    sleeper = pod.sleeper()

    async def amid_hang() -> None:
        async with serving(pod.netns, echo) as port:
            url = client.exec_url(sleeper, "cat", stdin=True)
            forward_url = client.port_forward_url(pod.id, port)
            async with (
                await remote_command(url, SPDY, stdin=True, stdout=True, stderr=True) as command,
                (await port_forward(forward_url, PORT_FORWARD[0], [port])).streams as _,
            ):
                await command.write(b"one")
                assert await command.read() == b"one"
                assert daemon.pid is not None
                with stopped(daemon.pid):
                    await command.write(b"two")
                    async with asyncio.timeout(SOON_S):
                        assert await command.read() == b"two"
                await command.end_input()
                assert await command.exit_code() == 0

    within(60, amid_hang())


def test_it_dies_with_its_daemon_and_the_port_is_free(crash_daemon: Daemon, image: str) -> None:
    daemon, client = crash_daemon, crash_daemon.client
    pod = Pod.run(client, image)
    sleeper = pod.sleeper()
    mark = unique_seconds()

    async def amid_session() -> None:
        url = client.exec_url(sleeper, "sleep", mark)
        async with await remote_command(
            url, SPDY, stdin=False, stdout=True, stderr=True
        ) as command:
            await asyncio.to_thread(wait_until, lambda: bool(processes_running(mark)))
            pid = streamer(daemon)
            os.kill(pid, signal.SIGSTOP)  # it could not leave by itself
            await asyncio.to_thread(daemon.kill9)
            await asyncio.to_thread(wait_until, lambda: procs.read_process(pid) is None)
            async with asyncio.timeout(SOON_S):
                await command.streams.ended.wait()

    within(60, amid_session())
    daemon.start()
    assert client.exec(sleeper, "echo", "here").stdout == b"here\n"
    wait_until(lambda: not processes_running(mark))
