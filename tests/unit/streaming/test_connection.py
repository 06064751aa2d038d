"""Connections over a pair of sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim.streaming.connection import LINGER_S, LOOK_S, Connection
from tests.fakes.clock import turn_over, until

if TYPE_CHECKING:
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Note:
    """Whoever the connection belongs to."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.drains = 0
        self.lost: list[str | None] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def drained(self) -> None:
        self.drains += 1

    def connection_lost(self, error: str | None) -> None:
        self.lost.append(error)


def pair() -> tuple[Connection, socket.socket, Note]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    return Connection(ours), theirs, Note()


async def read_all(sock: socket.socket) -> bytes:
    got = bytearray()
    while data := await asyncio.to_thread(sock.recv, 1 << 20):
        got += data
    return bytes(got)


async def test_what_the_kernel_does_not_take_is_sent_when_it_does() -> None:
    connection, peer, note = pair()
    connection.start(note)
    pieces = [bytes([n]) * 50_000 for n in range(200)]
    connection.send(pieces)
    assert connection.unsent > 5_000_000
    finishing = asyncio.gather(connection.finish(5), read_and_close(peer))
    _, got = await finishing
    assert got == b"".join(pieces)
    assert (connection.unsent, note.drains, note.lost) == (0, 1, [])


async def read_and_close(sock: socket.socket) -> bytes:
    try:
        return await read_all(sock)
    finally:
        sock.close()


async def test_a_peer_that_takes_nothing_is_not_waited_for_longer_than_that(
    clock: MovableClock,
) -> None:
    connection, peer, note = pair()
    connection.start(note)
    connection.send([bytes(10_000_000)])
    finishing = asyncio.ensure_future(connection.finish(60))
    await clock.sleep(59)
    assert not finishing.done()
    await clock.sleep(2)
    assert finishing.done()
    assert connection.unsent == 0
    peer.close()


async def test_a_peer_that_vanishes_while_it_is_not_read_is_noticed(
    clock: MovableClock,
) -> None:
    connection, peer, note = pair()
    connection.start(note)
    connection.pause_reading()
    peer.send(b"unread")
    await clock.sleep(2 * LOOK_S)
    assert note.lost == []
    peer.close()
    await clock.sleep(LOOK_S)
    assert note.lost == ["the client hung up"]
    assert not note.data
    connection.close()


async def test_an_end_is_told_once_and_nothing_is_sent_after_it() -> None:
    connection, peer, note = pair()
    connection.start(note)
    peer.send(b"bye")
    peer.close()
    await until(lambda: note.lost)
    connection.send([b"too late"])
    connection.resume_reading()
    assert (note.lost, bytes(note.data), connection.unsent) == ([None], b"bye", 0)
    connection.close()
    connection.close()


async def test_a_broken_connection_is_told_by_a_later_turn() -> None:
    connection, peer, note = pair()
    connection.start(note)
    connection.pause_reading()
    peer.close()
    connection.send([b"x"])
    assert note.lost == []
    await until(lambda: note.lost)
    assert note.lost == ["Broken pipe"]
    connection.close()


async def test_closing_it_ends_whoever_waits_for_its_first_words() -> None:
    connection, peer, _ = pair()
    waiting = asyncio.ensure_future(connection.receive())
    await turn_over()
    connection.close()
    with pytest.raises(ConnectionAbortedError):
        await waiting
    with pytest.raises(OSError, match="Bad file descriptor"):
        await connection.receive()
    peer.close()


async def test_a_cancelled_wait_leaves_the_connection_as_it_was() -> None:
    connection, peer, _ = pair()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await connection.receive()
    peer.send(b"now")
    assert await connection.receive() == b"now"
    connection.close()
    peer.close()


async def test_last_words_to_a_client_that_has_gone_hold_nobody_up() -> None:
    connection, peer, note = pair()
    connection.start(note)
    connection.pause_reading()
    peer.close()
    connection.send([b"bye"])
    assert connection.unsent == 3
    async with asyncio.timeout(5):
        await connection.finish(3600)
    assert note.lost == ["Broken pipe"]


async def test_client_that_never_stops_talking_is_listened_to_for_a_while_and_holds_nobody_up(
    clock: MovableClock,
) -> None:
    connection, peer, note = pair()
    connection.start(note)

    def talk() -> None:
        try:
            while True:
                peer.sendall(bytes(1 << 20))
        except OSError:
            peer.close()

    talking = asyncio.create_task(asyncio.to_thread(talk))
    connection.send([b"bye"])
    finishing = asyncio.create_task(connection.finish(5))
    await turn_over(5)
    assert not finishing.done()
    clock.move(LINGER_S)
    async with asyncio.timeout(20):
        await finishing
        await talking


async def test_what_waits_to_be_read_is_told() -> None:
    connection, peer, _ = pair()
    assert not connection.has_unread()
    peer.sendall(b"x")
    assert connection.has_unread()
    assert await connection.receive() == b"x"
    assert not connection.has_unread()
    peer.close()
    assert connection.has_unread()
    connection.close()
    assert not connection.has_unread()
