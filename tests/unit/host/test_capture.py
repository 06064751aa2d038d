from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.host.capture import UNREAD_S, Allowance, Capture, OutputFile
from tests.fakes.clock import until

if TYPE_CHECKING:
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


async def test_what_is_written_is_read_by_the_loop() -> None:
    capture = Capture(100)
    writer = os.dup(capture.write_fd)
    capture.start()
    os.write(writer, b"one ")
    await until(lambda: capture.data() == b"one ")
    os.write(writer, b"two")
    os.close(writer)
    await asyncio.wait_for(capture.eof, 5)
    assert capture.data() == b"one two"
    assert not capture.overflowed
    capture.close()
    capture.close()


async def test_a_short_child_is_read_when_it_has_ended(
    monkeypatch: pytest.MonkeyPatch, clock: MovableClock
) -> None:
    added: list[int] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "add_reader", lambda fd, *_: added.append(fd))
    capture = Capture(100)
    writer = os.dup(capture.write_fd)
    capture.start()
    os.write(writer, b"whole")
    os.close(writer)
    await asyncio.sleep(0)
    assert capture.drain()
    assert capture.data() == b"whole"
    await clock.sleep(2 * UNREAD_S)
    assert added == []
    capture.close()


async def test_a_child_that_fills_its_pipe_is_read_while_it_runs(clock: MovableClock) -> None:
    capture = Capture(1 << 20)
    writer = os.dup(capture.write_fd)
    capture.start()
    os.set_blocking(writer, False)
    size = os.write(writer, bytes(1 << 20))  # as much as there is room for
    await clock.sleep(2 * UNREAD_S)
    more = os.write(writer, bytes(1 << 20))
    assert more > 0
    os.close(writer)
    await asyncio.wait_for(capture.eof, 5)
    assert len(capture.data()) == size + more
    capture.close()


async def test_bound_keeps_the_beginning_and_tells_once() -> None:
    told: list[bool] = []
    capture = Capture(5)
    writer = os.dup(capture.write_fd)
    capture.start(on_overflow=lambda: told.append(True))
    os.write(writer, b"123")
    await until(lambda: capture.data() == b"123")
    os.write(writer, b"4567")
    await until(lambda: told)
    os.write(writer, b"89")
    os.close(writer)
    await asyncio.wait_for(capture.eof, 5)
    assert capture.data() == b"12345"
    assert capture.overflowed
    assert told == [True]
    capture.close()


async def test_tail_keeps_the_end() -> None:
    capture = Capture(4, tail=True)
    writer = os.dup(capture.write_fd)
    capture.start()
    for number in range(100):
        os.write(writer, b"%03d" % number)
        await asyncio.sleep(0)
    os.close(writer)
    await asyncio.wait_for(capture.eof, 5)
    assert capture.text() == "8099"
    capture.close()


async def test_bytes_that_are_no_text_are_replaced() -> None:
    capture = Capture(10)
    writer = os.dup(capture.write_fd)
    capture.start()
    os.write(writer, b"a\xffb")
    os.close(writer)
    assert capture.drain()
    assert capture.text() == "a\ufffdb"
    assert capture.drain()
    capture.close()


async def test_drain_takes_a_full_pipe_with_its_end() -> None:
    capture = Capture(1 << 20)
    writer = os.dup(capture.write_fd)
    capture.start()
    os.write(writer, bytes(65536))
    os.close(writer)
    assert capture.drain()
    assert len(capture.data()) == 65536
    capture.close()


async def test_drain_does_not_wait_for_a_pipe_that_is_held() -> None:
    capture = Capture(100)
    writer = os.dup(capture.write_fd)
    capture.start()
    os.write(writer, b"x")
    assert not capture.drain()
    assert capture.data() == b"x"
    os.close(writer)
    capture.close()
    assert capture.eof.done()


@pytest.mark.asyncio
async def test_captures_that_share_an_allowance_keep_no_more_than_that_together() -> None:
    allowance = Allowance(10)
    first, second = (Capture(8, allowance=allowance) for _ in range(2))
    for capture, data in ((first, b"12345678"), (second, b"abcdefgh")):
        os.write(capture.write_fd, data)
        capture.start()
        capture.drain()
    assert (first.data(), second.data()) == (b"12345678", b"ab")
    assert (first.overflowed, second.overflowed) == (False, True)
    first.close()
    first.close()
    third = Capture(100, allowance=allowance)
    os.write(third.write_fd, b"x" * 50)
    third.start()
    third.drain()
    assert third.data() == b"x" * 8
    second.close()
    third.close()


async def test_a_file_keeps_the_beginning_and_refuses_the_rest() -> None:
    output = OutputFile(4096)
    try:
        assert output.text(100) == ""
        os.write(output.write_fd, b"a word")
        assert output.text(100) == "a word"
        assert output.text(4) == "word"
        assert os.write(output.write_fd, bytes([65]) * 8000) == 4096 - len("a word")
        with pytest.raises(PermissionError):
            os.write(output.write_fd, b"more")
        with pytest.raises(PermissionError):
            os.ftruncate(output.write_fd, 1 << 20)
        assert output.text(100) == 100 * "A"
        elsewhere = os.dup(output.write_fd)
    finally:
        output.close()
    assert os.fstat(elsewhere).st_blocks == 0
    with pytest.raises(PermissionError):
        os.pwrite(elsewhere, b"more", 0)
    os.close(elsewhere)
