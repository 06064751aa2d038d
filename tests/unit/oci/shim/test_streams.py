"""The process that holds streams, and the daemon's side of it: started, found again, replaced, and left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.background import Background
from cri_shim.errors import CriShimError
from cri_shim.host.process import Reaper
from cri_shim.oci.attach_wire import resize_line
from cri_shim.oci.shim import streams as module
from cri_shim.oci.shim.streams import Hold, StreamsHolder
from tests.fakes.clock import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def holder(base: Path) -> AsyncIterator[StreamsHolder]:
    reaper, background = Reaper(), Background()
    reaper.open()
    made = StreamsHolder(reaper, background, base / "streams.sock")
    try:
        yield made
        for each in made.held:
            await made.finish(each, at_once=True)
    finally:
        made.close()
        await background.close(0)
        reaper.close()


def request(base: Path, name: str = "c") -> Hold:
    directory = base / name
    directory.mkdir(exist_ok=True)
    return Hold(name, str(directory), str(base / f"{name}.log"), False, True, True)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def pid_of(made: StreamsHolder) -> int:
    await until(lambda: made.pid)
    return made.pid


async def test_streams_are_held_until_they_are_finished_and_then_nobody_is_left(
    short_path: Path,
) -> None:
    async with holder(short_path) as made:
        await made.hold(request(short_path))
        await made.hold(request(short_path))
        pid = await pid_of(made)
        writer = os.open(short_path / "c" / "stdout", os.O_WRONLY)
        os.write(writer, b"hello\n")
        os.close(writer)
        await made.finish("c")
        assert (short_path / "c.log").read_bytes().endswith(b" stdout F hello\n")
        await until(lambda: is_gone(pid))
        assert not (short_path / "streams.sock").exists()
        await made.finish("c")


async def test_a_new_daemon_leaves_it_only_when_it_holds_nothing_any_more(short_path: Path) -> None:
    async with holder(short_path) as former:
        for name in ("a", "b"):
            await former.hold(request(short_path, name))
        pid = await pid_of(former)
        former.close()
        async with holder(short_path) as made:
            await made.finish("a", at_once=True)
            await made.hold(request(short_path, "b"))
            assert await pid_of(made) == pid
        async with holder(short_path) as made:
            await made.finish("b", at_once=True)  # which it was never told of
            await until(lambda: is_gone(pid))
            assert not (short_path / "streams.sock").exists()


async def test_it_is_ready_as_long_as_a_pod_may_need_it(short_path: Path) -> None:
    async with holder(short_path) as made:
        made.expect("pod")
        pid = await pid_of(made)
        await made.hold(request(short_path))
        await made.finish("c")
        assert made.pid == pid
        await made.finish("pod", at_once=True)
        await until(lambda: is_gone(pid))


async def test_what_is_asked_of_it_is_told(short_path: Path) -> None:
    sizes: list[tuple[str, int, int]] = []
    async with holder(short_path) as made:
        made.on_size = lambda *size: sizes.append(size)
        await made.hold(request(short_path))
        ctl = os.open(short_path / "c" / "ctl", os.O_WRONLY | os.O_NONBLOCK)
        os.write(ctl, resize_line(81, 25))
        os.close(ctl)
        await until(lambda: sizes)
    assert sizes == [("c", 81, 25)]


async def test_a_later_daemon_finds_it_and_one_that_died_is_replaced(short_path: Path) -> None:
    async with holder(short_path) as first:
        await first.hold(request(short_path))
        pid = await pid_of(first)
        first.close()
        async with holder(short_path) as second:
            await second.hold(request(short_path))
            assert await pid_of(second) == pid
            writer = os.open(short_path / "c" / "stdout", os.O_RDWR)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: second.pid not in (0, pid))
            await second.hold(request(short_path))  # as it was, without being asked
            os.write(writer, b"after\n")
            os.close(writer)
            await second.finish("c")
    assert (short_path / "c.log").read_bytes().endswith(b" stdout F after\n")


async def test_one_that_hangs_is_killed_and_replaced(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.5)
    async with holder(short_path) as made:
        await made.hold(request(short_path))
        pid = await pid_of(made)
        os.kill(pid, signal.SIGSTOP)
        await made.hold(request(short_path, "d"))
        await until(lambda: is_gone(pid))
        assert set(made.held) == {"c", "d"}
        await until(lambda: made.pid not in (0, pid))


async def test_what_can_not_be_held_says_why(short_path: Path) -> None:
    async with holder(short_path) as made:
        await made.hold(request(short_path))
        with pytest.raises(CriShimError, match="No such file"):
            await made.hold(Hold("x", str(short_path / "gone"), None, False, False, False))
        assert made.held == ("c",)


async def test_an_input_that_is_over_is_told_to_a_later_daemon_as_well(short_path: Path) -> None:

    async with holder(short_path) as made:
        over: list[str] = []
        made.on_input_end = over.append
        await made.hold(request(short_path))
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(str(short_path / "c" / "attach"))
        client.shutdown(socket.SHUT_WR)
        await until(lambda: over == ["c"])
        client.close()
        await made.hold(request(short_path))
        await until(lambda: over == ["c", "c"])
    await asyncio.sleep(0)
