"""What is made for those who attach, and kept of it, with sockets in conmon's place."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio

from cri_shim.background import Background
from cri_shim.errors import ResourceExhaustedError, WrongStateError
from cri_shim.oci.attach_pipes import MEMBER_BYTES
from cri_shim.oci.conmon_control import connect_attach
from cri_shim.paths import Paths
from cri_shim.sandbox.exec.attach import LOOK_S, STUCK_S, Attachable, AttachSessions, make_pipes
from cri_shim.sandbox.store.model import ContainerStatus
from tests.fakes.clock import until
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cri_shim.oci.conmon import Monitors
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio
RUNNING = ContainerStatus(committed_at_ns=1, started_at_ns=2)


class Monitor:
    """What of conmon is reached: its sockets are real."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.go = asyncio.Event()

    def connect_attach(self, bundle_dir: Path) -> socket.socket:
        return connect_attach(bundle_dir)

    async def resize_terminal(self, bundle_dir: Path, width: int, height: int) -> None:
        await self.go.wait()
        self.told.append((width, height))
        if width == 666:
            raise WrongStateError("the monitor is gone")


class Node:
    def __init__(self, base: Path) -> None:
        self.paths = Paths(base / "root", base / "s")
        self.background = Background()
        self.sizes = Monitor()
        self.attach_sessions = AttachSessions(
            paths=self.paths, monitors=cast("Monitors", self.sizes), background=self.background
        )
        self.container = make_container(status=RUNNING)
        self.container.config.tty = True
        self.container.config.stdin = True
        self.bundle_dir = self.paths.container(self.container.id).bundle_dir
        self.bundle_dir.mkdir(parents=True)

    @property
    def target(self) -> Attachable:
        return self.attach_sessions.attachable(self.container)

    @contextmanager
    def monitor(self) -> Iterator[socket.socket]:
        """Listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            directory = os.open(self.bundle_dir, os.O_PATH)  # its path may be too long
            listening.bind(f"/proc/self/fd/{directory}/attach")
            os.close(directory)
            listening.listen()
            listening.settimeout(5)
            yield listening


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    await made.background.close(5)


async def test_a_connection_is_the_streaming_processes_and_ours(node: Node) -> None:
    with node.monitor() as listening:
        given = socket.socket(fileno=node.attach_sessions.connect(node.target))
        monitor, _ = listening.accept()
        with given, monitor:
            monitor.send(b"\x02hello")
            assert given.recv(100) == b"\x02hello"
            given.close()  # ours is still there
            monitor.send(b"\x02more")
            node.attach_sessions.disconnected(node.container.id)
            node.attach_sessions.disconnected(node.container.id)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                monitor.send(b"\x02even more")


async def test_a_new_connection_takes_the_former_ones_place(node: Node) -> None:
    with node.monitor() as listening:
        first = socket.socket(fileno=node.attach_sessions.connect(node.target))
        former, _ = listening.accept()
        second = socket.socket(fileno=node.attach_sessions.connect(node.target))
        monitor, _ = listening.accept()
        with first, second, former, monitor:
            assert former.recv(10) == b""
            monitor.send(b"\x02x")
            assert second.recv(10) == b"\x02x"
            node.attach_sessions.all_disconnected()
            assert monitor.recv(10) == b""


@pytest.mark.parametrize("there", [False, True], ids=["no socket", "nobody listens"])
async def test_a_monitor_that_is_gone_is_said(node: Node, *, there: bool) -> None:
    if there:
        with node.monitor():
            pass
    with pytest.raises(WrongStateError, match="monitor has exited"):
        node.attach_sessions.connect(node.target)
    assert not node.attach_sessions.connected


async def test_pipes_are_of_what_the_container_has(node: Node) -> None:
    pipes = make_pipes(node.target, stdin=True, stdout=True, stderr=True)
    assert pipes.stdin is not None
    assert pipes.stdout is not None
    assert pipes.stderr is None  # a terminal's output is one
    assert fcntl.fcntl(pipes.stdout[0], fcntl.F_GETPIPE_SZ) == MEMBER_BYTES
    assert not os.get_blocking(pipes.stdin[1])
    pipes.close()
    node.container.config.stdin = False
    node.container.config.tty = False
    pipes = make_pipes(node.target, stdin=True, stdout=False, stderr=True)
    assert (pipes.stdin, pipes.stdout) == (None, None)
    assert pipes.stderr is not None
    pipes.close()


async def test_without_descriptors_no_half_of_the_pipes_is_left(node: Node) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 3, hard))
    try:
        with pytest.raises(ResourceExhaustedError, match="attach: creating pipes"):
            make_pipes(node.target, stdin=True, stdout=True, stderr=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_only_a_running_container_has_streams(node: Node) -> None:
    node.container.status = ContainerStatus(committed_at_ns=1)
    with pytest.raises(WrongStateError, match="not running"):
        node.attach_sessions.attachable(node.container)


async def test_of_many_sizes_the_last_one_counts(node: Node) -> None:
    target = node.target
    node.attach_sessions.resize(target, 1, 1)
    await asyncio.sleep(0)
    for side in range(2, 9):
        node.attach_sessions.resize(target, side, side)
    node.sizes.go.set()
    await until(lambda: node.sizes.told == [(1, 1), (8, 8)] or node.sizes.told == [(8, 8)])
    node.attach_sessions.resize(target, 666, 1)
    await until(lambda: node.sizes.told[-1] == (666, 1))
    node.attach_sessions.resize(target, 9, 9)  # the failure before it is forgotten
    await until(lambda: node.sizes.told[-1] == (9, 9))


async def test_what_is_no_terminal_has_no_size(node: Node) -> None:
    node.container.config.tty = False
    node.attach_sessions.resize(node.target, 1, 1)
    assert not node.attach_sessions.under_way


async def test_a_connection_that_is_read_is_left_alone_for_whoever_needs_the_monitor(
    node: Node, clock: MovableClock
) -> None:
    node.attach_sessions.unblock(node.container.id)  # nobody is attached
    with node.monitor() as listening:
        given = socket.socket(fileno=node.attach_sessions.connect(node.target))
        monitor, _ = listening.accept()
        packets = 0

        def asked(container_id: str) -> None:
            # There is always something unread, and always something was read.
            nonlocal packets
            packets += 1
            monitor.send(b"\x02x")
            node.attach_sessions.read_so_far(container_id, packets)

        node.attach_sessions.ask_how_far = asked
        node.attach_sessions.unblock(node.container.id)
        await clock.sleep(4 * STUCK_S)
        assert packets > 3
        monitor.send(b"\x02it goes on")
        node.attach_sessions.disconnected(node.container.id)
        await clock.sleep(LOOK_S)
        assert not node.attach_sessions.under_way
        node.attach_sessions.read_so_far(node.container.id, 7)  # late
        given.close()
        monitor.close()


async def test_a_connection_that_is_not_read_is_broken_off(node: Node, clock: MovableClock) -> None:
    with node.monitor() as listening:
        given = socket.socket(fileno=node.attach_sessions.connect(node.target))
        monitor, _ = listening.accept()
        with given, monitor:
            monitor.send(b"\x02x")
            node.attach_sessions.unblock(node.container.id)
            node.attach_sessions.unblock(node.container.id)
            await clock.sleep(STUCK_S / 2)
            assert node.attach_sessions.under_way
            await clock.sleep(STUCK_S)
            assert not node.attach_sessions.under_way
            with pytest.raises(BrokenPipeError):
                monitor.send(b"\x02y")
            assert given.recv(10) == b"\x02x"  # whoever hangs may wake up again
            assert given.recv(10) == b""
        node.attach_sessions.all_disconnected()
