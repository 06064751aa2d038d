from __future__ import annotations

import asyncio
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING

import pytest

from cri_shim import event_loop

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_S = 0.05


def stalls_of(callback: Callable[[], object]) -> list[tuple[float, float]]:
    """What is told while `callback` has a turn."""
    told: list[tuple[float, float]] = []

    async def main() -> None:
        event_loop.tell_of_stalls(lambda wall_s, cpu_s: told.append((wall_s, cpu_s)))
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    event_loop.run(main())
    return told


def compute() -> None:
    end = time.thread_time() + LONG_S
    while time.thread_time() < end:
        pass


def test_a_turn_that_computes_long_is_told_with_its_cpu_time() -> None:
    longest = max(stalls_of(compute), key=lambda stall: stall[1])
    # Two clocks, read one after the other: which of them shows more is chance where nobody else computes.
    assert min(longest) >= LONG_S


def test_a_turn_that_blocks_is_told_and_has_computed_nothing() -> None:
    longest = max(stalls_of(lambda: time.sleep(LONG_S)))
    assert longest[0] >= LONG_S
    assert longest[1] < LONG_S / 2


def test_many_callbacks_of_one_turn_count_together() -> None:
    told: list[float] = []

    async def main() -> None:
        event_loop.tell_of_stalls(lambda wall_s, _: told.append(wall_s))
        for _ in range(10):
            asyncio.get_running_loop().call_soon(time.sleep, LONG_S / 10)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    event_loop.run(main())
    assert max(told) >= LONG_S


def test_waiting_is_no_stall() -> None:
    told: list[float] = []

    async def main() -> None:
        event_loop.tell_of_stalls(lambda _, cpu_s: told.append(cpu_s))
        await asyncio.sleep(LONG_S)

    event_loop.run(main())
    # Where the machine is busy the thread may run late; it has computed nothing then.
    assert sum(told) < event_loop.STALL_S


def test_what_came_before_the_watch_does_not_count() -> None:
    told: list[float] = []

    async def main() -> None:
        compute()
        event_loop.tell_of_stalls(lambda _, cpu_s: told.append(cpu_s))
        await asyncio.sleep(0)

    event_loop.run(main())
    assert sum(told) < LONG_S


def test_the_result_comes_back() -> None:
    async def main() -> int:
        return 7

    assert event_loop.run(main()) == 7


def test_a_socket_is_read_from_and_written_to_at_once() -> None:
    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for each in (ours, theirs):
                each.setblocking(False)
            loop = asyncio.get_running_loop()
            large = bytes(range(256)) * 8192  # more than the sockets hold
            sending = asyncio.gather(
                loop.sock_sendall(ours, large), loop.sock_sendall(theirs, b"y")
            )
            received = b""
            while len(received) < len(large):
                received += await loop.sock_recv(theirs, 1 << 16)
            assert received == large
            await sending
            return await loop.sock_recv(ours, 1)

    assert event_loop.run(main()) == b"y"


def test_the_other_sides_end_is_told_to_who_reads_and_to_who_writes() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for add, end in ((loop.add_reader, 0), (loop.add_writer, 1)):
            pipe = os.pipe()
            told = loop.create_future()
            add(pipe[end], told.set_result, None)
            os.close(pipe[1 - end])
            await asyncio.wait_for(told, 10)
            (loop.remove_writer if end else loop.remove_reader)(pipe[end])
            os.close(pipe[end])

    event_loop.run(main())


def test_more_descriptors_than_one_turn_is_for_are_all_served() -> None:
    count = 200

    async def main() -> set[int]:
        loop = asyncio.get_running_loop()
        served: set[int] = set()
        done = loop.create_future()

        def read(fd: int) -> None:
            os.read(fd, 1)
            served.add(fd)
            if len(served) == count:
                done.set_result(None)

        pipes = [os.pipe() for _ in range(count)]
        for reading, writing in pipes:
            loop.add_reader(reading, read, reading)
            os.write(writing, b"x")
        await asyncio.wait_for(done, 10)
        for reading, writing in pipes:
            loop.remove_reader(reading)
            os.close(reading)
            os.close(writing)
        return served

    assert len(event_loop.run(main())) == count


def test_a_descriptor_is_registered_once_and_forgotten_as_a_whole() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, asyncio.SelectorEventLoop)
        reading, writing = os.pipe()
        selector = event_loop.TurnSelector()
        selector.register(reading, selectors.EVENT_READ, "first")
        with pytest.raises(KeyError):
            selector.register(reading, selectors.EVENT_READ)
        os.write(writing, b"x")
        assert selector.select(0) == [(selector.get_key(reading), selectors.EVENT_READ)]
        assert selector.modify(reading, 0, "second").data == "second"
        assert selector.select(0) == []
        assert list(selector.get_map()) == [reading]
        os.close(reading)  # the kernel forgets it before we do
        selector.unregister(reading)
        with pytest.raises(KeyError):
            selector.unregister(reading)
        with pytest.raises(KeyError):
            selector.get_key(reading)
        os.close(writing)
        selector.close()

    event_loop.run(main())
