"""Who is attached to what, with sockets in conmon's place."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio

from cri_shim.background import Background
from cri_shim.errors import WrongStateError
from cri_shim.paths import Paths
from cri_shim.sandbox import attach as module
from cri_shim.sandbox.attach import Attachments
from cri_shim.sandbox.model import ContainerStatus
from tests.fakes.house import until
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cri_shim.oci.attach_client import Member
    from cri_shim.oci.conmon import Monitors

pytestmark = pytest.mark.asyncio
RUNNING = ContainerStatus(committed_at_ns=1, started_at_ns=2)


class Sizes:
    """What of conmon resizes."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.go = asyncio.Event()

    async def resize_terminal(self, bundle_dir: Path, width: int, height: int) -> None:
        await self.go.wait()
        self.told.append((width, height))
        if width == 666:
            raise WrongStateError("the monitor is gone")


class Node:
    def __init__(self, base: Path) -> None:
        self.paths = Paths(base / "root", base / "s")
        self.background = Background()
        self.sizes = Sizes()
        self.attachments = Attachments(
            paths=self.paths, monitors=cast("Monitors", self.sizes), background=self.background
        )
        self.container = make_container(status=RUNNING)
        self.container.config.tty = True
        self.container.config.stdin = True
        self.bundle_dir = self.paths.container(self.container.id).bundle_dir
        self.bundle_dir.mkdir(parents=True)

    def join(self) -> Member:
        target = self.attachments.attachable(self.container)
        return self.attachments.join(target, stdin=False, stdout=True, stderr=True)

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


async def test_all_who_join_share_one_connection(node: Node) -> None:
    with node.monitor() as listening:
        first, second = node.join(), node.join()
        monitor, _ = listening.accept()
        listening.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listening.accept()
        assert first.stderr is None  # a terminal's output is one
        with monitor:
            monitor.send(b"\x02hello")
        for member in (first, second):
            assert await member.ended == 0
            assert member.stdout is not None
            assert os.read(member.stdout, 100) == b"hello"
            os.close(member.stdout)
        # The next one gets a connection of its own again.
        listening.settimeout(5)
        third = node.join()
        monitor, _ = listening.accept()
        monitor.close()
        assert await third.ended == 0
        assert third.stdout is not None
        os.close(third.stdout)


async def test_only_a_running_container_has_streams(node: Node) -> None:
    node.container.status = ContainerStatus(committed_at_ns=1)
    with pytest.raises(WrongStateError, match="not running"):
        node.join()


async def test_of_many_sizes_the_last_one_counts(node: Node) -> None:
    target = node.attachments.attachable(node.container)
    node.attachments.resize(target, 1, 1)
    await asyncio.sleep(0)
    for side in range(2, 9):
        node.attachments.resize(target, side, side)
    node.sizes.go.set()
    await until(lambda: node.sizes.told == [(1, 1), (8, 8)] or node.sizes.told == [(8, 8)])
    node.attachments.resize(target, 666, 1)
    await until(lambda: node.sizes.told[-1] == (666, 1))
    node.attachments.resize(target, 9, 9)  # the failure before it is forgotten
    await until(lambda: node.sizes.told[-1] == (9, 9))


async def test_a_connection_that_is_read_is_left_alone_for_whoever_needs_the_monitor(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "STUCK_S", 0.05)
    node.attachments.unblock(node.container.id)  # nobody is attached
    with node.monitor() as listening:
        member = node.join()
        monitor, _ = listening.accept()
        monitor.send(b"\x02x")
        node.attachments.unblock(node.container.id)
        await asyncio.sleep(0.1)
        assert not member.ended.done()
        monitor.close()
        assert await member.ended == 0
        assert member.stdout is not None
        os.close(member.stdout)


async def test_a_connection_that_is_not_read_is_broken_off(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "STUCK_S", 0.05)
    with node.monitor() as listening:
        member = node.join()
        monitor, _ = listening.accept()
        client = node.attachments._clients[node.container.id]
        asyncio.get_running_loop().remove_reader(client._socket)  # as if its loop hung
        monitor.send(b"\x02x")
        node.attachments.unblock(node.container.id)
        await asyncio.sleep(0.15)
        with pytest.raises(BrokenPipeError):
            monitor.send(b"\x02y")
        client._read()
        assert await member.ended == 0
        monitor.close()
        assert member.stdout is not None
        os.close(member.stdout)
