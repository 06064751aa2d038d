"""What the backend answers, packet by packet."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim import metrics
from cri_shim.host.packets import close_all
from cri_shim.sandbox.exec import process as exec_process
from cri_shim.sandbox.store.model import ContainerStatus, SandboxStatus
from cri_shim.streaming import ipc
from tests.fakes.clock import turn_over, until
from tests.unit.sandbox.stream_backend_node import StreamBackendNode, stream_backend_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Asker:
    """A streaming process that speaks for itself."""

    def __init__(self, node: StreamBackendNode) -> None:
        self.node = node
        self.told: list[tuple[ipc.ToStreamer, list[int]]] = []
        node.backend.open(self._tell)

    def _tell(self, told: ipc.ToStreamer, descriptors: Sequence[int] = ()) -> None:
        self.told.append((told, list(descriptors)))

    async def ask(self, asked: ipc.ToDaemon) -> tuple[ipc.ToStreamer, list[int]]:
        before = len(self.told)
        self.node.backend.handle(asked)
        await until(lambda: len(self.told) > before)
        return self.told[before]

    async def session(self, token: str, kind: str) -> int:
        told, _ = await self.ask(ipc.Redeem(call=1, token=token, kind=kind))
        assert isinstance(told, ipc.Granted)
        assert told.grant is not None
        return told.grant.session

    async def failure(self, asked: ipc.ToDaemon) -> str:
        told, descriptors = await self.ask(asked)
        assert isinstance(told, ipc.Failed)
        assert not descriptors
        return told.reason


@pytest_asyncio.fixture
async def asker(tmp_path: Path) -> AsyncIterator[Asker]:
    async with stream_backend_node(tmp_path) as node:
        before = sorted(os.listdir("/proc/self/fd"))
        asker = Asker(node)
        yield asker
        node.backend.close()
        await until(lambda: not list(node.node.exec_dir.iterdir()))
        assert sorted(os.listdir("/proc/self/fd")) == before


async def test_a_ticket_is_granted_once_and_as_it_was_asked_for(asker: Asker) -> None:
    token = asker.node.exec_ticket("true", tty=True)
    for wrong in (
        ipc.Redeem(call=1, token=token, kind="attach"),
        ipc.Redeem(call=1, token=token, kind="nonsense"),
        ipc.Redeem(call=1, token="guessed", kind="exec"),
    ):
        assert await asker.ask(wrong) == (ipc.Granted(call=1, grant=None), [])
    told, _ = await asker.ask(ipc.Redeem(call=2, token=token, kind="exec"))
    assert isinstance(told, ipc.Granted)
    assert told.grant is not None
    assert told.grant.object_id == asker.node.container.id
    assert (told.grant.stdin, told.grant.stderr, told.grant.tty) == (True, False, True)
    assert await asker.ask(ipc.Redeem(call=3, token=token, kind="exec")) == (
        ipc.Granted(call=3, grant=None),
        [],
    )


async def test_a_session_that_was_not_granted_gets_nothing(asker: Asker) -> None:
    assert "session 5 has ended" in await asker.failure(ipc.Begin(call=1, session=5))
    sockets = ipc.MakeSockets(call=2, session=5, family=socket.AF_INET, count=1)
    assert "session 5 has ended" in await asker.failure(sockets)
    session = await asker.session(asker.node.exec_ticket("true"), "exec")
    sockets = ipc.MakeSockets(call=3, session=session, family=socket.AF_INET, count=1)
    assert "has ended" in await asker.failure(sockets)  # no sockets for an exec
    asker.node.backend.handle(ipc.Leave(session=session))
    assert "has ended" in await asker.failure(ipc.Begin(call=4, session=session))
    asker.node.backend.handle(ipc.Leave(session=session))
    asker.node.backend.handle(ipc.Resize(session=session, width=1, height=1))


async def test_a_command_is_started_and_its_end_is_told(asker: Asker) -> None:
    session = await asker.session(asker.node.exec_ticket("sh", "-c", "echo out; exit 3"), "exec")
    told, descriptors = await asker.ask(ipc.Begin(call=2, session=session))
    assert told == ipc.Started(call=2, stdin=True, stdout=True, stderr=True)
    assert len(descriptors) == 3
    await until(lambda: asker.told[-1][0] == ipc.Ended(session=session, exit_code=3))
    assert os.read(descriptors[1], 100) == b"out\n"
    close_all(descriptors)


async def test_a_command_that_is_not_there_is_told_as_one_that_has_ended(asker: Asker) -> None:
    session = await asker.session(asker.node.exec_ticket("absent"), "exec")
    told, descriptors = await asker.ask(ipc.Begin(call=2, session=session))
    assert told == ipc.Started(call=2, stdin=False, stdout=False, stderr=True)
    await until(lambda: asker.told[-1][0] == ipc.Ended(session=session, exit_code=127))
    assert b"not found in $PATH" in os.read(descriptors[0], 1000)
    close_all(descriptors)


async def test_what_cannot_be_started_says_why(asker: Asker) -> None:
    session = await asker.session(asker.node.exec_ticket("refuse"), "exec")
    assert "no such file" in await asker.failure(ipc.Begin(call=2, session=session))
    session = await asker.session(asker.node.exec_ticket("true", container_id="gone"), "exec")
    assert "'gone' not found" in await asker.failure(ipc.Begin(call=3, session=session))
    asker.node.container.status = ContainerStatus(committed_at_ns=1)
    session = await asker.session(asker.node.exec_ticket("true"), "exec")
    assert "not running" in await asker.failure(ipc.Begin(call=4, session=session))


async def test_who_has_left_is_told_no_end_and_the_command_goes_on(asker: Asker) -> None:
    session = await asker.session(asker.node.exec_ticket("sleep", "0.2"), "exec")
    _, descriptors = await asker.ask(ipc.Begin(call=2, session=session))
    close_all(descriptors)
    asker.node.backend.handle(ipc.Leave(session=session))
    await until(lambda: not asker.node.node.background.tasks)
    await turn_over()
    assert not [told for told, _ in asker.told if isinstance(told, ipc.Ended)]


async def test_a_call_is_answered_whatever_becomes_of_it(asker: Asker, clock: MovableClock) -> None:
    session = await asker.session(asker.node.exec_ticket("hang"), "exec")
    before = len(asker.told)
    asker.node.backend.handle(ipc.Begin(call=2, session=session))
    await until(asker.node.node.runtimes)
    asker.node.backend.handle(ipc.Leave(session=session))
    clock.move(exec_process.RUNTIME_TIMEOUT_S)
    await until(lambda: len(asker.told) > before)
    told, descriptors = asker.told[-1]
    assert isinstance(told, ipc.Failed)
    assert (told.call, descriptors) == (2, [])


async def test_who_attaches_gets_the_connection_once_and_pipes_each_time(asker: Asker) -> None:
    session = await asker.session(asker.node.attach_ticket(), "attach")
    told, descriptors = await asker.ask(ipc.Begin(call=2, session=session))
    assert isinstance(told, ipc.Joined)
    assert (told.connection, told.stdin, told.stdout, told.stderr) == (True, True, True, True)
    assert len(descriptors) == 7
    with asker.node.accept() as monitor:
        close_all(descriptors)
        session = await asker.session(asker.node.attach_ticket(), "attach")
        told, descriptors = await asker.ask(ipc.Begin(call=3, session=session, attached=True))
        assert isinstance(told, ipc.Joined)
        assert (told.connection, len(descriptors)) == (False, 6)
        close_all(descriptors)
        asker.node.backend.handle(ipc.Detached(container_id=told.container_id))
        assert monitor.recv(10) == b""


async def test_how_far_it_has_read_is_asked_and_heard(asker: Asker) -> None:
    session = await asker.session(asker.node.attach_ticket(), "attach")
    _, descriptors = await asker.ask(ipc.Begin(call=2, session=session))
    container_id = asker.node.container.id
    with asker.node.accept():
        asker.node.attach_sessions.ask_how_far(container_id)
        assert asker.told[-1][0] == ipc.HowFar(container_id=container_id)
        asker.node.backend.handle(ipc.ReadSoFar(container_id=container_id, packets=7))
        assert asker.node.attach_sessions.packets_read(container_id) == 7
        close_all(descriptors)
        asker.node.backend.close()
        assert not asker.node.attach_sessions.connected


async def test_a_size_is_the_terminals_if_there_is_one(asker: Asker) -> None:
    asker.node.container.config.tty = True
    session = await asker.session(asker.node.attach_ticket(), "attach")
    asker.node.backend.handle(ipc.Resize(session=session, width=80, height=25))
    await until(lambda: asker.node.monitor.sizes == [(80, 25)])
    asker.node.container.status = ContainerStatus(committed_at_ns=1)  # it ended
    asker.node.backend.handle(ipc.Resize(session=session, width=81, height=25))
    assert asker.node.monitor.sizes == [(80, 25)]


async def test_a_ready_pods_sockets_are_made_while_it_is_ready(asker: Asker) -> None:
    session = await asker.session(asker.node.forward_ticket(80), "portforward")
    assert await asker.ask(ipc.Begin(call=2, session=session)) == (ipc.Done(call=2), [])
    asked = ipc.MakeSockets(call=3, session=session, family=socket.AF_INET, count=7)
    told, descriptors = await asker.ask(asked)
    assert told == ipc.Done(call=3)
    assert len(descriptors) == 7
    close_all(descriptors)
    told, _ = await asker.ask(ipc.MakeSockets(call=4, session=session, family=77, count=1))
    assert isinstance(told, ipc.Failed)
    assert told.errno != 0  # a family that this node hasn't
    asker.node.sandbox.status = SandboxStatus(ready_at_ns=1, stopped_at_ns=2)
    assert "not ready" in await asker.failure(asked)
    assert "not ready" in await asker.failure(ipc.Begin(call=5, session=session))


async def test_what_it_counted_is_what_the_metrics_say(asker: Asker) -> None:
    def value(name: str, **labels: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(name, labels)

    before = value("cri_shim_stream_bytes_total", kind="exec", direction="in") or 0
    asker.node.backend.handle(
        ipc.Counted(sessions=[("exec", "spdy/v4", 2)], carried=[("exec", "in", 10)])
    )
    assert value("cri_shim_stream_sessions", kind="exec", protocol="spdy/v4") == 2
    assert value("cri_shim_stream_bytes_total", kind="exec", direction="in") == before + 10
    asker.node.backend.close()
    assert not value("cri_shim_stream_sessions", kind="exec", protocol="spdy/v4")


async def test_stalls_of_its_loop_are_told_apart_from_the_daemons(asker: Asker) -> None:
    def count(process: str) -> float | None:
        labels = {"process": process, "clock": "cpu"}
        return metrics.REGISTRY.get_sample_value("cri_shim_loop_stall_seconds_count", labels)

    of_the_daemon, of_streams = count("daemon"), count("streaming") or 0
    asker.node.backend.handle(ipc.Stalled(wall_s=0.3, cpu_s=0.2))
    assert count("streaming") == of_streams + 1
    assert count("daemon") == of_the_daemon


async def test_after_its_end_nothing_is_left_of_its_sessions(asker: Asker) -> None:
    running = await asker.session(asker.node.exec_ticket("sleep", "0.3"), "exec")
    _, descriptors = await asker.ask(ipc.Begin(call=2, session=running))
    close_all(descriptors)
    await asker.session(asker.node.forward_ticket(), "portforward")
    asker.node.backend.close()
    asker.node.backend.close()
    assert not asker.node.backend.sessions
    await until(lambda: not asker.node.backend.commands)
    before = len(asker.told)
    asker.node.backend.handle(ipc.Redeem(call=9, token="late", kind="exec"))
    assert len(asker.told) == before
    # The next process's sessions are others.
    again = Asker(asker.node)
    assert await again.session(again.node.forward_ticket(), "portforward") > running
