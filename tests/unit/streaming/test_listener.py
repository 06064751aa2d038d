"""Clients are taken from the socket while there is room, and wait there meanwhile."""

from __future__ import annotations

import asyncio
import select
import socket
from itertools import pairwise

import pytest

from cri_shim.streaming.listener import ACCEPTS_AT_ONCE, Listener
from tests.fakes.clock import turn_over, until

pytestmark = pytest.mark.asyncio


def connect_to(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname(), timeout=5)


async def test_who_finds_no_room_waits_and_is_taken_once_there_is_some() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []
    room = 2
    listener = Listener(listening, lambda: len(taken) < room, taken.append)
    clients = [connect_to(listening) for _ in range(4)]
    async with asyncio.timeout(5):
        await until(lambda: len(taken) == 2)
        await turn_over()
        assert len(taken) == 2
        room = 4
        await until(lambda: len(taken) == 4)
    listener.close()
    listener.close()
    assert not any(sock.getblocking() for sock in taken)
    for sock in (*taken, *clients):
        sock.close()


async def test_who_hangs_up_while_it_waits_is_no_obstacle() -> None:
    """Without room, too: else a queue full of them would turn those away who come next."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=16)
    taken: list[socket.socket] = []
    room = 0
    for _ in range(16):
        connect_to(listening).close()
    listener = Listener(listening, lambda: len(taken) < room, taken.append)
    async with asyncio.timeout(5):
        await until(lambda: not is_readable(listening))
        client = connect_to(listening)
        room = 1
        await until(lambda: len(taken) == 1)
    assert taken[0].getpeername() == client.getsockname()
    listener.close()
    for sock in (*taken, client):
        sock.close()


async def test_one_that_has_no_room_yet_is_closed_with_the_listener() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    listener = Listener(listening, lambda: False, lambda _: None)
    client = connect_to(listening)
    async with asyncio.timeout(5):
        await until(lambda: not is_readable(listening))
    listener.close()
    assert client.recv(1) == b""
    client.close()


def is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


async def test_others_have_their_turn_between_clients() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    clients = [connect_to(listening) for _ in range(2 * ACCEPTS_AT_ONCE)]
    taken: list[socket.socket] = []
    listener = Listener(listening, lambda: True, taken.append)
    counts = []
    async with asyncio.timeout(5):
        while len(taken) < len(clients):
            counts.append(len(taken))
            await asyncio.sleep(0)
    assert max(after - before for before, after in pairwise(counts)) <= ACCEPTS_AT_ONCE
    listener.close()
    for sock in (*taken, *clients):
        sock.close()
