"""Both ends of the connection, joined: what the server asks is done by a backend with this machine behind it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import termios
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import CriShimError, ResourceExhaustedError
from cri_shim.host.packets import Packets, close_all
from cri_shim.streamer.backend_client import RESIZE_PAUSE_S, BackendClient
from cri_shim.streaming import ipc
from tests.fakes.clock import until
from tests.unit.sandbox.stream_backend_node import StreamBackendNode, stream_backend_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from cri_shim.streaming.backend import Grant
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Joined:
    """A backend, and a client of it as the streaming process has it."""

    def __init__(self, node: StreamBackendNode) -> None:
        self.node = node
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.drop_descriptors = False
        self.asked: list[ipc.ToDaemon] = []
        self._theirs = Packets(theirs, self._told, lambda: None)
        self.backend = BackendClient(self._ask)
        self._ours = Packets(ours, self._handle, node.backend.close)
        node.backend.open(self._send)

    def _ask(self, asked: ipc.ToDaemon) -> None:
        self.asked.append(asked)
        self._theirs.send(ipc.encode(asked))

    def _told(self, packet: bytes, descriptors: list[int]) -> None:
        if self.drop_descriptors:
            close_all(descriptors)
            descriptors = []
        self.backend.handle(ipc.decode_to_streamer(packet), descriptors)

    def _handle(self, packet: bytes, _descriptors: list[int]) -> None:
        self.node.backend.handle(ipc.decode_to_daemon(packet))

    def _send(self, told: ipc.ToStreamer, descriptors: Sequence[int] = ()) -> None:
        self._ours.send(ipc.encode(told), descriptors)

    async def grant(self, token: str, kind: str) -> Grant:
        found = await self.backend.redeem(token, kind)
        assert found is not None
        return found

    async def exec_grant(self, *command: str, tty: bool = False) -> Grant:
        return await self.grant(self.node.exec_ticket(*command, tty=tty), "exec")

    def close(self) -> None:
        self._theirs.close()
        self._ours.close()


@pytest_asyncio.fixture
async def joined(tmp_path: Path) -> AsyncIterator[Joined]:
    async with stream_backend_node(tmp_path) as node:
        before = sorted(os.listdir("/proc/self/fd"))
        made = Joined(node)
        yield made
        made.close()
        node.backend.close()
        await until(lambda: not list(node.node.exec_dir.iterdir()))
        await until(lambda: sorted(os.listdir("/proc/self/fd")) == before)


def close(*descriptors: int | None) -> None:
    close_all([fd for fd in descriptors if fd is not None])


async def test_a_commands_streams_are_ours_and_its_status_comes(joined: Joined) -> None:
    grant = await joined.exec_grant("sh", "-c", "read line; echo got $line; exit 3")
    command = await joined.backend.exec(grant)
    assert command.stdin is not None
    assert command.stdout is not None
    os.write(command.stdin, b"this\n")
    assert await command.ended == 3
    assert os.read(command.stdout, 100) == b"got this\n"
    command.resize(1, 1)  # there is no terminal
    close(command.stdin, command.stdout, command.stderr)
    joined.backend.leave(grant)


async def test_a_terminal_has_the_size_it_is_told(joined: Joined) -> None:
    grant = await joined.exec_grant("sleep", "60", tty=True)
    command = await joined.backend.exec(grant)
    assert command.stdout is not None
    command.resize(100, 30)
    assert termios.tcgetwinsize(command.stdout) == (30, 100)
    command.ended.cancel()  # its session is over
    close(command.stdin, command.stdout)
    await asyncio.sleep(0)
    command.resize(1, 1)  # touches no descriptor of anybody else
    joined.backend.leave(grant)


async def test_the_nodes_words_are_the_clients(joined: Joined) -> None:
    grant = await joined.exec_grant("refuse")
    with pytest.raises(CriShimError, match="no such file"):
        await joined.backend.exec(grant)
    assert not joined.backend.commands
    assert await joined.backend.redeem("guessed", "exec") is None


async def test_all_who_attach_share_one_connection(joined: Joined) -> None:
    grants = [await joined.grant(joined.node.attach_ticket(), "attach") for _ in range(3)]
    commands = await asyncio.gather(*(joined.backend.attach(grant) for grant in grants))
    monitor = joined.node.accept()
    with pytest.raises(BlockingIOError):
        joined.node.accept()
    monitor.send(b"\x02hello")
    monitor.close()
    for command in commands:
        assert await command.ended == 0
        assert command.stdout is not None
        assert os.read(command.stdout, 100) == b"hello"
        close(command.stdin, command.stdout, command.stderr)
    # The end was told: the next one gets a connection of its own.
    await until(lambda: not joined.node.attach_sessions.connected)
    again = await joined.backend.attach(await joined.grant(joined.node.attach_ticket(), "attach"))
    with joined.node.accept() as monitor:
        again.ended.cancel()
        close(again.stdin, again.stdout, again.stderr)
        await until(lambda: not joined.node.attach_sessions.connected)
        assert monitor.recv(10) == b""


async def test_of_sizes_that_come_fast_the_daemon_hears_few_and_the_last(
    joined: Joined, clock: MovableClock
) -> None:
    grant = await joined.grant(joined.node.attach_ticket(), "attach")
    command = await joined.backend.attach(grant)
    for width in range(1, 1001):
        command.resize(width, 24)

    def told() -> list[int]:
        return [asked.width for asked in joined.asked if isinstance(asked, ipc.Resize)]

    await until(lambda: told()[-1:] == [1000])
    assert told() == [1, 1000]
    command.resize(7, 24)
    command.resize(8, 24)
    with joined.node.accept():
        command.ended.cancel()
        close(command.stdin, command.stdout, command.stderr)
        await until(lambda: not joined.node.attach_sessions.connected)
    await clock.sleep(2 * RESIZE_PAUSE_S)
    assert 8 not in told(), "whoever has left says nothing more"


async def test_who_comes_while_the_last_one_leaves_gets_another_connection(joined: Joined) -> None:
    first = await joined.backend.attach(await joined.grant(joined.node.attach_ticket(), "attach"))
    joined.node.accept().close()
    grant = await joined.grant(joined.node.attach_ticket(), "attach")
    coming = asyncio.ensure_future(joined.backend.attach(grant))
    await asyncio.sleep(0)  # it has asked, counting on the connection there is
    assert await first.ended == 0
    close(first.stdin, first.stdout, first.stderr)
    second = await coming
    with joined.node.accept() as monitor:
        monitor.send(b"\x02hello")
        assert second.stdout is not None
        stdout = second.stdout
        await until(lambda: select.select([stdout], [], [], 0)[0])
        assert os.read(stdout, 100) == b"hello"
        second.ended.cancel()
        close(second.stdin, second.stdout, second.stderr)
        await until(lambda: not joined.node.attach_sessions.connected)


async def test_how_far_it_was_read_is_told_to_who_asks(joined: Joined) -> None:
    command = await joined.backend.attach(await joined.grant(joined.node.attach_ticket(), "attach"))
    container_id = joined.node.container.id
    with joined.node.accept() as monitor:
        for _ in range(5):
            monitor.send(b"\x02x")
        connection = joined.node.attach_sessions

        def told() -> bool:
            joined.node.attach_sessions.ask_how_far(container_id)
            return connection.packets_read(container_id) == 5

        await until(told)
        joined.node.attach_sessions.ask_how_far("nobody")
        command.resize(80, 25)
        close(command.stdin, command.stdout, command.stderr)
        command.ended.cancel()
        await until(lambda: not joined.node.attach_sessions.connected)


async def test_a_pods_ports_are_reached_while_the_session_lasts(joined: Joined) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = target.getsockname()[1]
        grant = await joined.grant(joined.node.forward_ticket(port), "portforward")
        assert grant.ports == (port,)
        dialer = await joined.backend.port_forward(grant)
        (await dialer.connect(port)).close()
        joined.backend.leave(grant)
        with pytest.raises(CriShimError, match=f"session {grant.session} has ended"):
            await dialer.connect(port)
        dialer.close()


async def test_what_comes_for_somebody_who_has_gone_is_given_back(joined: Joined) -> None:
    token = joined.node.exec_ticket("sleep", "0.1")
    asking = asyncio.ensure_future(joined.backend.redeem(token, "exec"))
    await asyncio.sleep(0)
    asking.cancel()
    await until(lambda: any(isinstance(a, ipc.Leave) for a in joined.asked))
    grant = await joined.exec_grant("sleep", "0.1")
    starting = asyncio.ensure_future(joined.backend.exec(grant))
    await asyncio.sleep(0)
    starting.cancel()
    attaching = asyncio.ensure_future(
        joined.backend.attach(await joined.grant(joined.node.attach_ticket(), "attach"))
    )
    await asyncio.sleep(0)
    attaching.cancel()
    await until(lambda: any(isinstance(a, ipc.Detached) for a in joined.asked))
    await until(lambda: not joined.backend.unanswered)
    await until(lambda: not joined.node.attach_sessions.connected)
    joined.node.accept().close()


async def test_without_descriptors_it_is_said_and_nothing_is_left(joined: Joined) -> None:
    execs = await joined.exec_grant("sleep", "0.1")
    attach = await joined.grant(joined.node.attach_ticket(), "attach")
    forward = await joined.grant(joined.node.forward_ticket(), "portforward")
    dialer = await joined.backend.port_forward(forward)
    joined.drop_descriptors = True
    with pytest.raises(ResourceExhaustedError, match="no free descriptors"):
        await joined.backend.exec(execs)
    with pytest.raises(ResourceExhaustedError, match="no free descriptors"):
        await joined.backend.attach(attach)
    with pytest.raises(ResourceExhaustedError, match="no free descriptors"):
        await dialer.connect(80)
    await until(lambda: not joined.node.attach_sessions.connected)
    joined.node.accept().close()


async def test_an_answer_of_the_wrong_kind_is_no_answer() -> None:
    said: list[ipc.ToDaemon] = []
    backend = BackendClient(said.append)
    asking = asyncio.ensure_future(backend.redeem("t", "exec"))
    await until(lambda: said)
    backend.handle(ipc.Done(call=1), [os.dup(0)])
    with pytest.raises(CriShimError, match="answered Done"):
        await asking
    backend.handle(ipc.Done(call=1), [os.dup(0)])  # to nobody
    backend.handle(ipc.Ended(session=1, exit_code=0), [])
