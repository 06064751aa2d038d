"""Clients whose bytes cost more than they are: frames of one byte, blocks that inflate, resets, pings, sizes.

For each, somebody else's exec is asked for answers all the time. Every one comes, and the streaming process stays
within what it promises, whatever was sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.streaming.wire import spdy_frames as frames
from cri_shim.streaming.wire.remotecommand import Channel
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.upgrade import Framing
from cri_shim.streaming.wire.websocket import WebSocketConnection
from tests.harness import procs
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
from tests.integration.scene import Pod
from tests.integration.streaming.footprint import sessions
from tests.integration.streaming.targets import serving
from tests.integration.streaming.within import within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from tests.harness.daemon import Daemon
    from tests.harness.streaming_sessions import ClientStreams, Protocol, RemoteCommand

pytestmark = pytest.mark.integration

BASE_MIB, SESSION_MIB = 64.0, 1.0
"""What the streaming process promises."""
ATTACKERS = 6
ATTACK_S = 1.0
"""What is not taken by then waits with the kernel."""
ANSWER_S = 1.0 * SLOWNESS
"""Without what a busy machine, and this process, which sends the attacks as well, make of it."""
HANGS_S = 20.0 * SLOWNESS
MIN_ANSWERS = 10
_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


def memory_mib(daemon: Daemon) -> float:
    assert daemon.pid is not None
    [pid] = procs.streamers_of([daemon.pid])
    [kib] = _PSS.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return int(kib) / 1024


async def pour(streams: ClientStreams, wire: bytes) -> bool:
    """Send it over and over, for as long as an attack lasts; whether the server ended that."""
    try:
        async with asyncio.timeout(ATTACK_S):
            while True:
                await streams.send_raw(wire)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def answers(daemon: Daemon, victim: RemoteCommand, over: asyncio.Event) -> int:
    """How many the victim gave, each in time, until it is over; some more, where they were few by then."""
    [pid] = procs.streamers_of([daemon.pid or 0])

    def clock_s() -> float:
        _, server_waited_s = procs.used_and_waited_s(pid)
        return time.monotonic() - server_waited_s - sum(procs.used_and_waited_s("thread-self"))

    count = 0
    while not over.is_set() or count < MIN_ANSWERS:
        began_s = clock_s()
        async with asyncio.timeout(HANGS_S):
            await victim.write(b"x")
            assert await victim.read() == b"x"
        assert clock_s() - began_s < ANSWER_S
        count += 1
        await asyncio.sleep(0.01)
    return count


def beside_a_victim(
    daemon: Daemon, pod: Pod, container: str, attack: Callable[[AsyncExitStack], Awaitable[None]]
) -> None:
    async def all_of_it() -> None:
        async with AsyncExitStack() as stack:
            url = pod.client.exec_url(container, "cat", stdin=True)
            victim = await stack.enter_async_context(
                await remote_command(url, SPDY, stdin=True, stdout=True, stderr=True)
            )
            over = asyncio.Event()
            answering = asyncio.create_task(answers(daemon, victim, over))
            before = procs.streamers_of([daemon.pid or 0])
            await attack(stack)
            there = await asyncio.to_thread(sessions, daemon)
            memory = memory_mib(daemon)
            assert memory < BASE_MIB + SESSION_MIB * there, memory
            over.set()
            assert await answering >= MIN_ANSWERS
            assert procs.streamers_of([daemon.pid or 0]) == before

    within(60, all_of_it())


async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(600)


async def gush(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(1 << 18))
        await writer.drain()


def messages(*payloads: bytes, ping: bool = False) -> bytes:
    websocket = WebSocketConnection(mask_key=lambda: b"\1\2\3\4")
    for payload in payloads:
        if ping:
            websocket.ping(payload)
        else:
            websocket.send_message([payload])
    return b"".join(websocket.data_to_send())


def carried(protocol: Protocol, wire: bytes, piece: int) -> bytes:
    """SPDY as it is, or in messages of so many bytes."""
    if protocol.framing is Framing.SPDY:
        return wire
    return messages(*(wire[i : i + piece] for i in range(0, len(wire), piece)))


@pytest.mark.parametrize("protocol", PORT_FORWARD[:3], ids=str)
def test_frames_of_one_byte_for_a_target_that_does_not_read(
    daemon: Daemon, pod: Pod, container: str, protocol: Protocol
) -> None:
    frame = frames.data_header(3, 1, fin=False) + b"x"
    pairs_of_channels = protocol.framing is Framing.CHANNELS
    wire = messages(b"\0x") * 8000 if pairs_of_channels else carried(protocol, frame * 4000, 1000)

    async def attack(stack: AsyncExitStack) -> None:
        port = await stack.enter_async_context(serving(pod.netns, ignore))

        async def one() -> bool:
            url = pod.client.port_forward_url(pod.id, port)
            session = await stack.enter_async_context(await port_forward(url, protocol, [port]))
            await session.connect(port)
            return await pour(session.streams, wire)

        assert not any(await asyncio.gather(*(one() for _ in range(ATTACKERS))))

    beside_a_victim(daemon, pod, container, attack)


@pytest.fixture
def sleeper(pod: Pod) -> Iterator[str]:
    """Whose execs end with it."""
    sleeper = pod.sleeper()
    yield sleeper
    pod.client.stop(sleeper)
    pod.client.remove(sleeper)


@pytest.mark.parametrize("protocol", [SPDY, WEBSOCKET], ids=str)
def test_frames_of_one_byte_for_a_command_that_does_not_read(
    daemon: Daemon, pod: Pod, container: str, sleeper: str, protocol: Protocol
) -> None:
    async def attack(stack: AsyncExitStack) -> None:
        async def one() -> bool:
            url = pod.client.exec_url(sleeper, "sleep", "600", stdin=True)
            command = await stack.enter_async_context(
                await remote_command(url, protocol, stdin=True, stdout=True, stderr=True)
            )
            number = command._numbers[Channel.STDIN]
            frame = (
                frames.data_header(number, 1, fin=False) + b"x"
                if protocol is SPDY
                else messages(b"\0x")
            )
            return await pour(command.streams, frame * 8000)

        assert not any(await asyncio.gather(*(one() for _ in range(ATTACKERS))))

    beside_a_victim(daemon, pod, container, attack)


def inflating(count: int, inflated: int) -> bytes:
    deflate = zlib.compressobj(9, zdict=frames.DICTIONARY)
    wire = b""
    for number in range(count):
        text = [b"a", b"\xff" * (inflated - 16)]
        block = frames.WORD.pack(1) + b"".join(frames.WORD.pack(len(t)) + t for t in text)
        payload = frames.WORDS.pack(2 * number + 1, 0) + b"\0\0" + deflate.compress(block)
        payload += deflate.flush(zlib.Z_SYNC_FLUSH)
        wire += frames.control_frame(frames.FrameType.SYN_STREAM, payload)
    return wire


@pytest.mark.parametrize("protocol", PORT_FORWARD[:2], ids=str)
@pytest.mark.parametrize("inflated", [frames.MAX_HEADER_BLOCK_BYTES, 64 << 10])
def test_header_blocks_that_inflate_end_their_session(
    daemon: Daemon, pod: Pod, container: str, protocol: Protocol, inflated: int
) -> None:
    wire = carried(protocol, inflating(2000, inflated), 60_000)

    async def attack(stack: AsyncExitStack) -> None:
        async def one() -> None:
            streams = await stack.enter_async_context(
                await connect(pod.client.port_forward_url(pod.id), protocol)
            )
            assert isinstance(streams, SpdyStreams)
            assert await pour(streams, wire) or streams.ended.is_set()

        await asyncio.gather(*(one() for _ in range(ATTACKERS)))

    beside_a_victim(daemon, pod, container, attack)


def pairs(count: int, port: int, *, reset: bool, both: bool = True) -> bytes:
    client = SpdyConnection(client=True)
    for number in range(count):
        headers = {"port": str(port), "requestid": str(number)}
        error = client.open_stream({"streamtype": "error", **headers}, fin=True)
        if both:
            data = client.open_stream({"streamtype": "data", **headers})
            if reset:
                client.reset(data)
        if reset:
            client.reset(error)
    return b"".join(client.data_to_send())


@pytest.mark.parametrize("protocol", PORT_FORWARD[:2], ids=str)
def test_connections_that_are_reset_as_they_are_made(
    daemon: Daemon, pod: Pod, container: str, protocol: Protocol
) -> None:
    async def attack(stack: AsyncExitStack) -> None:
        port = await stack.enter_async_context(serving(pod.netns, ignore))
        made = await asyncio.to_thread(pairs, 3000, port, reset=True)
        wire = carried(protocol, made, 1000)

        async def one() -> None:
            streams = await stack.enter_async_context(
                await connect(pod.client.port_forward_url(pod.id), protocol)
            )
            await streams.send_raw(wire)
            await asyncio.sleep(ATTACK_S)

        await asyncio.gather(*(one() for _ in range(ATTACKERS)))

    beside_a_victim(daemon, pod, container, attack)


@pytest.mark.parametrize("both", [True, False], ids=["whole", "half-open"])
def test_as_many_connections_as_a_session_takes(
    daemon: Daemon, pod: Pod, container: str, both: bool
) -> None:
    """The targets send without end, and the client's windows are closed."""

    async def attack(stack: AsyncExitStack) -> None:
        port = await stack.enter_async_context(serving(pod.netns, ignore if both else gush))
        no_window = frames.WORDS.pack(1, frames.SETTINGS_INITIAL_WINDOW_SIZE) + bytes(4)
        wire = frames.control_frame(frames.FrameType.SETTINGS, no_window)
        wire += await asyncio.to_thread(pairs, 1000, port, reset=False, both=both)

        async def one() -> None:
            streams = await stack.enter_async_context(
                await connect(pod.client.port_forward_url(pod.id), PORT_FORWARD[0])
            )
            await streams.send_raw(wire)

        await asyncio.gather(*(one() for _ in range(ATTACKERS)))
        await asyncio.sleep(ATTACK_S)

    beside_a_victim(daemon, pod, container, attack)


PINGS = frames.control_frame(frames.FrameType.PING, frames.WORD.pack(1)) * 8000
STRAYS = frames.data_header(999, 0, fin=False) * 8000
OVER_AND_OVER = [
    pytest.param(SPDY, PINGS, id="spdy-pings"),
    pytest.param(SPDY, STRAYS, id="spdy-no-such-stream"),
    pytest.param(WEBSOCKET, messages(b"p", ping=True) * 8000, id="websocket-pings"),
]


@pytest.mark.parametrize(("protocol", "wire"), OVER_AND_OVER)
def test_what_has_to_be_answered_to_a_client_that_does_not_read(
    daemon: Daemon, pod: Pod, container: str, sleeper: str, protocol: Protocol, wire: bytes
) -> None:
    async def attack(stack: AsyncExitStack) -> None:
        async def one() -> None:
            url = pod.client.exec_url(sleeper, "sleep", "600", stdin=True)
            streams = await stack.enter_async_context(await connect(url, protocol))
            streams.stop_reading()
            await pour(streams, wire)

        await asyncio.gather(*(one() for _ in range(ATTACKERS)))

    beside_a_victim(daemon, pod, container, attack)


def test_sizes_of_a_terminal_one_behind_the_other(daemon: Daemon, pod: Pod, container: str) -> None:
    config = pod.container("sh", "-c", "while read line; do :; done")
    config.stdin = config.tty = True
    terminal = pod.start(config)
    sizes = [json.dumps({"Width": 80 + n % 2, "Height": 24}).encode() for n in range(2)]
    wire = messages(*(b"\4" + size for size in sizes)) * 2000

    async def attack(stack: AsyncExitStack) -> None:
        async def one() -> None:
            url = pod.client.attach_url(terminal, stdin=True, tty=True)
            streams = await stack.enter_async_context(await connect(url, WEBSOCKET))
            await pour(streams, wire)

        await asyncio.gather(*(one() for _ in range(ATTACKERS)))
        assert await asyncio.to_thread(pod.client.exec, container, "true")

    beside_a_victim(daemon, pod, container, attack)
    pod.client.stop(terminal)
    pod.client.remove(terminal)


WIDE = frames.control_frame(
    frames.FrameType.SETTINGS,
    frames.WORDS.pack(1, frames.SETTINGS_INITIAL_WINDOW_SIZE) + frames.WORD.pack((1 << 31) - 1),
)
ONE_BYTE = frames.data_header(3, 1, fin=False) + b"x"
A_BAD_CLIENTS_EXEC = 8
"""Of so many sessions one is an exec, which costs the node a process; the others are port-forwards."""


async def bad_client(
    stack: AsyncExitStack, pod: Pod, sleeper: str, ports: Sequence[int], number: int
) -> None:
    """One of many, each kind in turn: it sends what is dear, or reads nothing of what comes without end.

    `ports` lead to a target that gushes, and to one that ignores.
    """
    protocol = PORT_FORWARD[number % 3]
    if number % A_BAD_CLIENTS_EXEC == 0:
        command = ["cat", "/dev/zero"] if number % 16 else ["sleep", "600"]
        url = pod.client.exec_url(sleeper, *command, stdin=True)
        exec_protocol = (SPDY, WEBSOCKET)[number // 32 % 2]
        session = await stack.enter_async_context(
            await remote_command(url, exec_protocol, stdin=True, stdout=True, stderr=True)
        )
        stdin = frames.data_header(session._numbers[Channel.STDIN], 1, fin=False) + b"x"
        wire = (stdin if exec_protocol is SPDY else messages(b"\0x")) * 8000
        session.streams.stop_reading()
        await pour(session.streams, wire)
        return
    reads = number % 2 == 0
    port = ports[reads]
    url = pod.client.port_forward_url(pod.id, port)
    streams = (await stack.enter_async_context(await port_forward(url, protocol, [port]))).streams
    in_channels = protocol.framing is Framing.CHANNELS
    if not in_channels:
        pair = await asyncio.to_thread(pairs, 1, port, reset=False)
        await streams.send_raw(carried(protocol, WIDE + pair, 1000))
    if not reads:
        streams.stop_reading()
    wire = messages(b"\0x") * 8000 if in_channels else carried(protocol, ONE_BYTE * 4000, 1000)
    await pour(streams, wire)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(24, id="24"),
        pytest.param(320, id="320", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_many_bad_clients_of_all_kinds_cost_what_is_promised(
    daemon: Daemon, pod: Pod, sleeper: str, image: str, count: int
) -> None:
    """Half of them in another pod: one may not have so many."""
    other = Pod.run(daemon.client, image)
    kept = other.sleeper()

    async def all_of_them() -> None:
        before = procs.streamers_of([daemon.pid or 0])
        async with AsyncExitStack() as stack:
            ports = {
                each.id: [
                    await stack.enter_async_context(serving(each.netns, serve))
                    for serve in (gush, ignore)
                ]
                for each in (pod, other)
            }
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    place, its = (pod, sleeper) if number // 2 % 2 else (other, kept)
                    group.create_task(bad_client(stack, place, its, ports[place.id], number))
                    if number % 8 == 7:
                        await asyncio.sleep(0.1)  # not all execs at once
            there = await asyncio.to_thread(sessions, daemon)
            memory = memory_mib(daemon)
            assert there >= count
            assert memory < BASE_MIB + SESSION_MIB * there, f"{memory} MiB of {there} sessions"
            assert await asyncio.to_thread(pod.client.exec, kept, "true")
        assert procs.streamers_of([daemon.pid or 0]) == before

    within(60 + count, all_of_them())
    daemon.client.stop_pod(other.id)
    daemon.client.remove_pod(other.id)
