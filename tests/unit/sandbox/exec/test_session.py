"""Execs for clients: what is handed out, what becomes of the command without them."""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import DeadlineError, RuntimeCommandError, WrongStateError
from cri_shim.sandbox.exec import process as exec_process
from cri_shim.sandbox.exec.session import ExecStreams, close_streams
from cri_shim.sandbox.store.model import ContainerStatus
from tests.fakes.clock import until
from tests.unit.sandbox.exec_node import Node, exec_node, is_alive, pid_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with exec_node(tmp_path) as made:
        before = sorted(os.listdir("/proc/self/fd"))
        yield made
        await until(lambda: not list(made.exec_dir.iterdir()))
        assert sorted(os.listdir("/proc/self/fd")) == before


async def opened(node: Node, *command: str, tty: bool = False) -> ExecStreams:
    return await node.sessions.open(node.container, command, stdin=True, stdout=True, tty=tty)


async def read_to_end(fd: int | None) -> bytes:
    assert fd is not None
    got = bytearray()

    def ended() -> bool:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        except OSError:  # EIO: a terminal's end
            return True
        got.extend(data)
        return not data

    await until(ended)
    return bytes(got)


async def test_the_three_streams_are_apart_and_the_status_comes(node: Node) -> None:
    streams = await opened(node, "sh", "-c", "cat; echo err >&2; exit 3")
    assert streams.stdin is not None
    os.write(streams.stdin, b"hello")
    os.close(streams.stdin)
    assert await read_to_end(streams.stdout) == b"hello"
    assert await read_to_end(streams.stderr) == b"err\n"
    assert (await streams.child.wait()).exit_code == 3
    close_streams(ExecStreams(None, streams.stdout, streams.stderr, streams.child))


async def test_what_is_not_wanted_is_nothing(node: Node) -> None:
    streams = await node.sessions.open(
        node.container, ["sh", "-c", "cat; echo out"], stdin=False, stdout=False, tty=False
    )
    assert (streams.stdin, streams.stdout) == (None, None)
    assert (await streams.child.wait()).exit_code == 0
    close_streams(streams)


async def test_with_a_terminal_there_is_one_stream(node: Node) -> None:
    streams = await opened(node, "sh", "-c", "test -t 0 && test -t 2 && echo yes", tty=True)
    assert streams.stderr is None
    assert await read_to_end(streams.stdout) == b"yes\r\n"
    assert (await streams.child.wait()).exit_code == 0
    close_streams(streams)


async def test_letting_go_of_a_terminal_hangs_it_up(node: Node) -> None:
    streams = await opened(node, "sh", "-c", "echo on; exec sleep 600", tty=True)
    assert streams.stdout is not None
    terminal = streams.stdout
    await until(lambda: select.select([terminal], [], [], 0)[0])  # it has become the command's own
    close_streams(streams)
    assert (await streams.child.wait()).exit_code == 129


async def test_a_refusal_brings_the_runtimes_words(node: Node) -> None:
    for tty in (False, True):
        with pytest.raises(RuntimeCommandError, match="exec failed: no such file"):
            await opened(node, "refuse", tty=tty)


@pytest.mark.parametrize("tty", [False, True])
async def test_a_command_that_is_not_there_says_so_and_ends_as_in_a_shell(
    node: Node, *, tty: bool
) -> None:
    streams = await opened(node, "absent", tty=tty)
    assert streams.stdin is None
    assert (streams.stderr is None) is tty
    said = await read_to_end(streams.stdout if tty else streams.stderr)
    end = b"\r\n" if tty else b"\n"
    assert said.endswith(b'exec: "absent": executable file not found in $PATH' + end)
    assert (await streams.child.wait()).exit_code == 127
    close_streams(streams)
    assert list(node.exec_dir.iterdir()) == []


async def test_a_runtime_without_a_terminal_to_give_leaves_nothing_running(node: Node) -> None:
    with pytest.raises(RuntimeCommandError, match="sent no terminal"):
        await opened(node, "no-terminal", tty=True)


async def test_a_runtime_that_hangs_is_given_up(node: Node, clock: MovableClock) -> None:
    opening = asyncio.ensure_future(opened(node, "hang"))
    await until(node.runtimes)
    clock.move(exec_process.RUNTIME_TIMEOUT_S)
    with pytest.raises(DeadlineError, match="runc did not start 'hang'"):
        await opening
    assert node.runtimes() == []


async def test_only_a_running_container_runs_commands(node: Node) -> None:
    node.container.status = ContainerStatus(committed_at_ns=1)
    with pytest.raises(WrongStateError, match="not running"):
        await opened(node, "true")


async def test_a_command_outlives_its_listener_and_its_files_go_with_it(
    node: Node, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    streams = await opened(node, "sh", "-c", f"echo $$ > {pid_file}; read line; exec sleep 0.3")
    pid = await pid_in(pid_file)
    close_streams(streams)
    [named] = node.exec_dir.glob("*.pid")
    assert int(named.read_text()) == pid
    assert is_alive(pid)
    await streams.child.wait()
    await until(lambda: not list(node.exec_dir.iterdir()))


async def test_one_who_goes_away_before_it_starts_leaves_no_descriptor(node: Node) -> None:
    call = asyncio.ensure_future(opened(node, "sh", "-c", "cat"))
    await until(lambda: list(node.exec_dir.iterdir()))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: not list(node.exec_dir.iterdir()))  # its input ended, and so did it
