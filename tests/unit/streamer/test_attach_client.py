"""One connection, many members, with a socket in conmon's place; a real conmon is in tests/integration."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import ResourceExhaustedError
from cri_shim.oci import attach_pipes
from cri_shim.oci.attach_pipes import Pipes
from cri_shim.oci.conmon_control import connect_attach
from cri_shim.streamer.attach_client import AttachClient, Member
from tests.fakes.clock import turn_over, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio


class Monitor:
    """The other side of the attach socket."""

    def __init__(self, bundle_dir: Path) -> None:
        self.bundle_dir = bundle_dir
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(bundle_dir / "attach"))
        self._listening.listen()
        self._listening.settimeout(5)
        self.sock: socket.socket | None = None
        self.connection: socket.socket | None = None
        """The client's end, which owns it."""
        self.ends = 0

    def client(self, *, stdin: bool = True, stdin_once: bool = False) -> AttachClient:
        self.connection = connect_attach(self.bundle_dir)
        client = AttachClient(
            "c1",
            self.connection,
            stdin=stdin,
            stdin_once=stdin_once,
            on_end=self._end,
        )
        self.sock, _ = self._listening.accept()
        self.sock.setblocking(False)
        return client

    def _end(self) -> None:
        self.ends += 1

    def says(self, stream: int, data: bytes) -> None:
        assert self.sock is not None
        self.sock.send(bytes([stream]) + data)  # it is read before the socket is full

    def hears(self) -> bytes | None:
        """The next packet; None while there is none."""
        assert self.sock is not None
        try:
            return self.sock.recv(1 << 16)
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._listening.close()
        if self.sock is not None:
            self.sock.close()


@pytest_asyncio.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    before = sorted(os.listdir("/proc/self/fd"))
    made = Monitor(tmp_path)
    yield made
    made.close()
    await turn_over()
    assert sorted(os.listdir("/proc/self/fd")) == before


def pipe() -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, attach_pipes.MEMBER_BYTES)
    return reading, writing


class Attached:
    """A member, as a session uses it."""

    def __init__(self, member: Member) -> None:
        self.member = member

    @classmethod
    def join(cls, client: AttachClient, *, stdin: bool = True, stderr: bool = True) -> Attached:
        return cls(
            client.join(Pipes(pipe() if stdin else None, pipe(), pipe() if stderr else None))
        )

    def read(self, fd: int | None) -> bytes | None:
        assert fd is not None
        try:
            return os.read(fd, 1 << 20)
        except BlockingIOError:
            return None

    @property
    def out(self) -> bytes | None:
        return self.read(self.member.stdout)

    def write(self, data: bytes) -> None:
        assert self.member.stdin is not None
        os.write(self.member.stdin, data)

    def end_stdin(self) -> None:
        assert self.member.stdin is not None
        os.close(self.member.stdin)
        self.member.stdin = None

    def leave(self) -> None:
        self.member.ended.cancel()
        for fd in (self.member.stdin, self.member.stdout, self.member.stderr):
            if fd is not None:
                os.close(fd)


async def test_each_member_gets_what_comes_after_it_joined(monitor: Monitor) -> None:
    client = monitor.client()
    first = Attached.join(client)
    monitor.says(2, b"one ")
    await until(lambda: client.packets_read == 1)
    second = Attached.join(client, stderr=False)
    monitor.says(2, b"two")
    monitor.says(3, b"oh")
    await until(lambda: client.packets_read == 3)
    assert (first.out, first.read(first.member.stderr)) == (b"one two", b"oh")
    assert (second.out, second.member.stderr) == (b"two", None)
    first.leave()
    await asyncio.sleep(0)
    monitor.says(2, b"three")
    await until(lambda: client.packets_read == 4)
    assert second.out == b"three"
    second.leave()
    await until(lambda: monitor.ends)
    assert monitor.hears() == b""


async def test_the_containers_end_is_each_members(monitor: Monitor) -> None:
    member = Attached.join(monitor.client())
    monitor.says(2, b"bye")
    assert monitor.sock is not None
    monitor.sock.close()
    assert await member.member.ended == 0
    assert (member.out, member.out) == (b"bye", b"")
    member.leave()


async def test_a_member_that_falls_behind_is_dropped_and_nobody_waits(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach_pipes, "MEMBER_BYTES", 65536)
    client = monitor.client()
    slow, quick = Attached.join(client), Attached.join(client)
    got = 0
    for _ in range(100):
        monitor.says(2, bytes(8192))
        await asyncio.sleep(0)
        got += len(quick.out or b"")
    await until(lambda: client.packets_read == 100)
    got += len(quick.out or b"")
    assert got == 100 * 8192
    with pytest.raises(ResourceExhaustedError, match=r"fell more than .* behind"):
        await slow.member.ended
    assert not quick.member.ended.done()
    slow.leave()
    quick.leave()
    await until(lambda: monitor.ends)


async def test_input_comes_in_packets_that_conmon_takes_whole(monitor: Monitor) -> None:
    client = monitor.client()
    member = Attached.join(client)
    data = os.urandom(200_000)
    assert member.member.stdin is not None
    assert os.write(member.member.stdin, data) == len(data)
    got = bytearray()

    def all_came() -> bool:
        while packet := monitor.hears():
            assert len(packet) <= 32 << 10
            got.extend(packet)
        return len(got) == len(data)

    await until(all_came)
    assert got == data
    member.leave()
    await until(lambda: monitor.ends)


async def test_while_conmon_takes_no_input_output_goes_on(monitor: Monitor) -> None:
    client = monitor.client()
    member = Attached.join(client)
    assert member.member.stdin is not None
    os.set_blocking(member.member.stdin, False)
    for _ in range(50):
        try:
            os.write(member.member.stdin, bytes(100_000))
        except BlockingIOError:
            break
        await turn_over()
    else:
        pytest.fail("its pipe never filled up")
    monitor.says(2, b"still here")
    await until(lambda: client.packets_read == 1)
    assert member.out == b"still here"
    member.leave()  # what conmon never took isn't kept for it
    await turn_over()
    await until(lambda: not monitor.hears() and monitor.ends)


async def test_without_stdin_once_input_never_ends(monitor: Monitor) -> None:
    client = monitor.client()
    first, second = Attached.join(client), Attached.join(client)
    first.write(b"1")
    first.end_stdin()
    await until(lambda: monitor.hears() == b"1")
    second.write(b"2")
    await until(lambda: monitor.hears() == b"2")
    first.leave()
    second.leave()
    await until(lambda: monitor.ends)


async def test_with_stdin_once_the_end_of_the_first_is_the_end(monitor: Monitor) -> None:
    client = monitor.client(stdin_once=True)
    watcher = Attached.join(client, stdin=False)
    watcher.leave()  # it had none: that ends nothing, and the connection stays
    await turn_over()
    assert (monitor.ends, monitor.hears()) == (0, None)
    first, second = Attached.join(client), Attached.join(client)
    first.write(b"all of it")
    first.leave()
    await until(lambda: monitor.hears() == b"all of it")
    await until(lambda: monitor.hears() == b"")
    monitor.says(2, b"still heard")
    await until(lambda: client.packets_read == 1)
    assert second.out == b"still heard"
    third = Attached.join(client)
    assert third.member.stdin is None
    with pytest.raises(BrokenPipeError):
        second.write(b"late")
    assert monitor.sock is not None
    monitor.sock.close()
    assert await second.member.ended == 0
    second.leave()
    third.leave()
    await until(lambda: monitor.ends == 1)


async def test_a_container_without_input_takes_none(monitor: Monitor) -> None:
    client = monitor.client(stdin=False, stdin_once=True)
    member = Attached.join(client)
    assert member.member.stdin is None
    member.leave()
    await until(lambda: monitor.ends)


async def test_its_end_is_told_to_a_monitor_whose_connection_somebody_else_holds(
    monitor: Monitor,
) -> None:
    client = monitor.client()
    assert monitor.connection is not None
    with monitor.connection.dup():
        member = Attached.join(client)
        member.leave()
        await until(lambda: monitor.ends)
        assert monitor.hears() == b""


async def test_a_connection_that_somebody_breaks_off_ends_for_its_members(monitor: Monitor) -> None:
    client = monitor.client()
    assert monitor.connection is not None
    with monitor.connection.dup() as other:
        member = Attached.join(client)
        other.shutdown(socket.SHUT_RDWR)
        assert await member.member.ended == 0
    member.leave()
