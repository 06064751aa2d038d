"""Outputs and inputs on pipes of our own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
from typing import TYPE_CHECKING

import pytest

from cri_shim.streaming import pumps
from cri_shim.streaming.pumps import Input, Output
from tests.fakes.clock import turn_over, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.asyncio


class Reading:
    """An output and what it said."""

    def __init__(self, on_data: Callable[[bytes], object] = lambda _: None) -> None:
        fd, self.writing = os.pipe()
        os.set_blocking(fd, False)
        self.data = bytearray()
        self.ended = 0
        self.on_data = on_data
        """Called after it was noted."""
        self.output = Output(fd, self._take, self._end)

    def _take(self, data: bytes) -> None:
        self.data += data
        self.on_data(data)

    def _end(self) -> None:
        self.ended += 1


async def test_nothing_is_read_before_it_is_wanted_and_while_paused() -> None:
    reading = Reading()
    os.write(reading.writing, b"one")
    await turn_over()
    assert reading.data == b""
    reading.output.resume()
    await until(lambda: reading.data == b"one")
    reading.output.pause()
    os.write(reading.writing, b"two")
    os.close(reading.writing)
    await turn_over()
    assert (bytes(reading.data), reading.ended) == (b"one", 0)
    reading.output.resume()
    await until(lambda: reading.ended)
    assert (bytes(reading.data), reading.ended, reading.output.over) == (b"onetwo", 1, True)


async def test_after_the_process_what_is_in_the_pipe_is_all() -> None:
    reading = Reading()  # its other end stays open: somebody holds it
    reading.output.resume()
    os.write(reading.writing, b"last words")
    reading.output.expect_end()
    reading.output.expect_end()
    await until(lambda: reading.ended)
    assert (bytes(reading.data), reading.ended) == (b"last words", 1)
    with pytest.raises(BrokenPipeError):
        os.write(reading.writing, b"more")
    os.close(reading.writing)


async def test_an_end_that_is_expected_while_paused_comes_when_reading_goes_on() -> None:
    reading = Reading()
    os.write(reading.writing, b"x")
    reading.output.expect_end()
    await turn_over()
    assert not reading.ended
    reading.output.resume()
    await until(lambda: reading.ended)
    assert reading.data == b"x"
    os.close(reading.writing)


async def test_one_who_writes_on_faster_than_it_is_read_is_not_waited_for() -> None:
    reading = Reading(lambda data: os.write(reading.writing, bytes(len(data))))
    os.set_blocking(reading.writing, False)
    os.write(reading.writing, bytes(65536))
    reading.output.resume()
    reading.output.expect_end()
    await until(lambda: reading.ended)
    assert len(reading.data) <= 2 * 65536
    os.close(reading.writing)


async def test_closing_twice_is_once() -> None:
    reading = Reading()
    reading.output.resume()
    reading.output.close()
    reading.output.close()
    reading.output.resume()
    reading.output.pause()
    assert reading.ended == 0
    os.close(reading.writing)


async def test_input_waits_for_its_reader_and_arrives_in_order() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    taken: list[int] = []
    input_ = Input(taken.append)
    input_.write(b"early ")
    assert input_.pending == 6
    input_.open(writing)
    data = os.urandom(500_000)
    for start in range(0, len(data), 1000):
        input_.write(data[start : start + 1000])
    input_.end()
    assert input_.pending > 400_000
    got = bytearray()
    while chunk := await asyncio.to_thread(os.read, reading, 65536):
        got += chunk
    assert got == b"early " + data
    assert (input_.pending, sum(taken)) == (0, len(got))
    os.close(reading)


async def test_input_for_nobody_counts_as_taken() -> None:
    taken: list[int] = []
    none = Input(taken.append)
    none.write(b"12")
    none.open(None)
    none.write(b"345")
    none.end()
    assert (taken, none.pending) == ([2, 3], 0)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.close(reading)
    broken = Input(taken.append)
    broken.open(writing)
    broken.write(b"6789")
    broken.write(b"0")
    assert (taken, broken.pending) == ([2, 3, 4, 1], 0)


async def test_input_is_dropped_when_its_reader_goes_in_the_middle() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    taken: list[int] = []
    input_ = Input(taken.append)
    input_.open(writing)
    input_.write(bytes(200_000))
    input_.write(bytes(200_000))
    os.close(reading)
    await until(lambda: sum(taken) == 400_000)
    assert input_.pending == 0
    input_.end()
    input_.close()


async def test_a_slow_reader_of_a_full_pipe_is_not_woken_for_by_each_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    pipe_bytes = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 256 << 10)
    writes: list[int] = []
    gather = os.writev

    def count(fd: int, buffers: list[bytes]) -> int:
        writes.append(fd)
        return gather(fd, buffers)

    monkeypatch.setattr(os, "writev", count)
    input_ = Input(lambda _: None)
    input_.open(writing)
    data = os.urandom(pipe_bytes + (1 << 20))
    input_.write(data)
    input_.end()
    read = bytearray()
    while page := os.read(reading, 4096):
        read += page
        await turn_over(3)  # the loop looks whether the pipe is writable, and it is
        await until(lambda: select.select([reading], [], [], 0)[0])
    assert read == data
    # Of the 256 pages that did not fit at first, each would have been a write of its own.
    assert len(writes) < 64
    os.close(reading)


async def test_a_pipe_that_is_left_alone_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pumps, "MIN_REST_S", 60.0)
    monkeypatch.setattr(pumps, "MAX_REST_S", 60.0)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 256 << 10)
    input_ = Input(lambda _: None)
    input_.open(writing)
    input_.write(bytes(2 * size))
    os.read(reading, 4096)
    await turn_over(3)
    assert input_.pending == size - 4096
    os.read(reading, 4096)
    await turn_over(3)
    assert input_.pending == size - 4096  # it could have taken another page
    input_.close()
    with open(reading, "rb", buffering=0) as rest:
        assert len(rest.readall() or b"") == size - 4096
