"""Packets between two ends in one process."""

from __future__ import annotations

import errno
import os
import resource
import socket

import pytest

from cri_shim.host import packets as module
from cri_shim.host.packets import MAX_PACKET_BYTES, Packets, receive_packet
from tests.fakes.clock import until

pytestmark = pytest.mark.asyncio


class End:
    def __init__(self, sock: socket.socket) -> None:
        self.got: list[tuple[bytes, list[int]]] = []
        self.ended = 0
        self.packets = Packets(sock, lambda data, fds: self.got.append((data, fds)), self._end)

    def _end(self) -> None:
        self.ended += 1


def pair() -> tuple[End, End]:
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return End(first), End(second)


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


async def test_packets_come_whole_in_order_with_what_is_beside_them() -> None:
    here, there = pair()
    reading, writing = os.pipe()
    here.packets.send(b"first")
    here.packets.send(b"second", [writing])
    await until(lambda: len(there.got) == 2)
    assert there.got[0] == (b"first", [])
    data, [received] = there.got[1]
    assert data == b"second"
    assert not os.get_inheritable(received)
    os.write(received, b"through it")
    os.close(received)
    assert os.read(reading, 100) == b"through it"
    assert os.read(reading, 100) == b""  # the sender's was closed when it had been sent
    os.close(reading)
    here.packets.close()
    there.packets.close()


async def test_the_end_is_told_once_and_only_to_the_other_side() -> None:
    here, there = pair()
    here.packets.close()
    here.packets.close()
    await until(lambda: there.ended)
    assert (here.ended, there.ended) == (0, 1)
    assert there.packets.closed


async def test_what_is_not_taken_yet_waits_and_nothing_is_lost() -> None:
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here = End(first)
    before = open_descriptors()
    for number in range(200):
        here.packets.send(b"%d " % number + bytes(MAX_PACKET_BYTES - 100), [os.dup(0)])
    assert open_descriptors() != before, "some are still to be sent"
    there = End(second)
    await until(lambda: len(there.got) == 200)
    assert [int(data.split()[0]) for data, _ in there.got] == list(range(200))
    for _, [fd] in there.got:
        os.close(fd)
    assert open_descriptors() == before
    here.packets.close()
    there.packets.close()


async def test_what_nobody_will_read_keeps_no_descriptor() -> None:
    before = open_descriptors()
    for first_to_close in ("reader", "sender"):
        first, unread = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here = End(first)
        with unread:
            for _ in range(50):
                here.packets.send(bytes(MAX_PACKET_BYTES - 100), [os.dup(0)])
            if first_to_close == "sender":
                here.packets.close()
        if first_to_close == "reader":
            await until(lambda here=here: here.ended)  # type: ignore[misc]
            here.packets.send(b"late", [os.dup(0)])
    assert open_descriptors() == before


async def test_a_packet_that_is_too_long_ends_the_conversation() -> None:
    here, there = pair()
    here.packets.send(bytes(MAX_PACKET_BYTES + 1), [os.dup(0)])
    await until(lambda: there.ended)
    assert not there.got
    here.packets.close()


async def test_a_long_packet_is_an_error_that_leaks_nothing() -> None:
    before = open_descriptors()
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with first, second:
        socket.send_fds(first, [b"too long"], [0])
        with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
            receive_packet(second, 3, 4)
        socket.send_fds(first, [b"x"], [0, 1, 2])
        assert receive_packet(second, 3, 1) == (b"x", [])  # some were cut off: none is given
    assert open_descriptors() == before


async def test_who_may_have_no_more_descriptors_gets_the_packet_without() -> None:
    here, there = pair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here.packets.send(b"take this", [os.dup(0), os.dup(0)])
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        await until(lambda: there.got)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert there.got == [(b"take this", [])]
    here.packets.close()
    there.packets.close()


async def test_a_receiver_that_closes_in_between_hears_no_more() -> None:
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here = End(first)
    heard: list[bytes] = []

    def once(data: bytes, _descriptors: list[int]) -> None:
        heard.append(data)
        there.close()

    there = Packets(second, once, lambda: None)
    here.packets.send(b"one")
    here.packets.send(b"two")
    await until(lambda: here.ended)
    assert heard == [b"one"]
    assert module.PACKETS_AT_ONCE > 1
