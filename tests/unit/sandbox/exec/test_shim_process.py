"""Commands in a container of a shim: started with the daemon's pipes, and ended whatever the shim does."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.errors import DeadlineError, RuntimeCommandError
from cri_shim.ttrpc.errors import CallError, Code
from tests.fakes.clock import until
from tests.fakes.task_shim import ShimHandler, shim_handler
from tests.unit.sandbox.exec_node import Node, exec_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.sandbox.exec_node import ExecRuntime

pytestmark = pytest.mark.asyncio


class OnlyErrors:
    """Streams of a process whose errors go where the test's go."""

    stdin = stdout = console_socket = None
    stderr = 2

    def given(self) -> None:
        """Nothing is to be closed."""

    def error_output(self) -> str:
        return ""


class Scene:
    """A container of a shim, to run commands in."""

    def __init__(self, node: Node, handler: ShimHandler) -> None:
        self.node = node
        self.shim = handler.shim
        node.runtime = cast("ExecRuntime", handler.runtime)
        self.container_id = node.container.id

    async def asked(self) -> pb.ExecProcessRequest:
        """The process that the shim was asked to start, once it runs."""
        await until(lambda: self.shim.requested(pb.StartRequest)[-1:] != [])
        await until(lambda: any(each.exec_id for each in self.shim.requested(pb.StartRequest)))
        found: pb.ExecProcessRequest = self.shim.requested(pb.ExecProcessRequest)[-1]
        return found

    def end(self, asked: pb.ExecProcessRequest, code: int) -> None:
        self.shim.end(self.container_id, code, asked.exec_id)

    def killed(self) -> set[str]:
        return {each.exec_id for each in self.shim.requested(pb.KillRequest)}


@pytest_asyncio.fixture
async def at(tmp_path: Path, short_path: Path) -> AsyncIterator[Scene]:
    async with exec_node(tmp_path) as node, shim_handler(short_path, node.reaper) as handler:
        scene = Scene(node, handler)
        await handler.run(scene.container_id)
        before = sorted(os.listdir("/proc/self/fd"))
        yield scene
        await until(lambda: sorted(os.listdir("/proc/self/fd")) == before)


async def test_output_and_code_come_back(at: Scene) -> None:
    running = asyncio.create_task(at.node.run("echo", "hello"))
    asked = await at.asked()
    opened = at.shim.streams[asked.exec_id]
    os.write(opened["stdout"], b"hello\n")
    os.write(opened["stderr"], b"oh\n")
    at.end(asked, 3)
    result = await running
    assert (result.stdout, result.stderr, result.exit_code) == (b"hello\n", b"oh\n", 3)
    assert b'"args":["echo","hello"]' in asked.spec.value.replace(b" ", b"")


async def test_a_program_that_is_missing_has_a_shells_code(at: Scene) -> None:
    at.shim.refusals["Start"] = CallError(
        Code.UNKNOWN, 'runc: exec: "no": executable file not found in $PATH'
    )
    assert (await at.node.run("no")).exit_code == 127


async def test_what_the_shim_refuses_is_said_in_its_words(at: Scene) -> None:
    at.shim.refusals["Exec"] = CallError(Code.FAILED_PRECONDITION, "it is paused")
    with pytest.raises(RuntimeCommandError, match="it is paused"):
        await at.node.run("true")


async def test_a_start_that_hangs_is_ended_at_its_deadline(at: Scene) -> None:
    at.shim.hanging.add("Start")
    with pytest.raises(DeadlineError):
        await at.node.run("true", timeout_s=0.1)
    assert at.killed() == {at.shim.requested(pb.ExecProcessRequest)[-1].exec_id}


async def test_a_start_that_nobody_waits_for_any_more_is_ended(at: Scene) -> None:
    at.shim.hanging.add("Start")
    processes = at.node.processes
    call = processes.plan(at.node.container, ["true"])
    files = processes.files(at.node.container)
    starting = asyncio.create_task(processes.start(call, files, OnlyErrors(), timeout_s=60))
    await at.asked()
    starting.cancel()
    await asyncio.wait([starting])
    assert at.killed() == {files.process.stem}
    files.process.unlink()


async def test_a_command_is_killed_at_its_deadline_with_what_it_has_started(at: Scene) -> None:
    at.node.pids_in_container = [at.shim.process.pid]
    with pytest.raises(DeadlineError):
        await at.node.run("sleep", "9", timeout_s=0.1)
    asked = await at.asked()
    assert at.killed() == {asked.exec_id}
    assert at.shim.process.wait() == -9


async def test_a_process_of_elsewhere_is_not_killed_on_the_node(at: Scene) -> None:
    with pytest.raises(DeadlineError):
        await at.node.run("sleep", "9", timeout_s=0.1)
    assert at.killed() == {(await at.asked()).exec_id}
    with pytest.raises(subprocess.TimeoutExpired):
        at.shim.process.wait(0)


async def test_a_terminal_is_the_shims_and_its_input_ends(at: Scene) -> None:
    streams = await at.node.sessions.open(
        at.node.container, ["sh"], stdin=True, stdout=True, tty=True, size=(80, 24)
    )
    asked = await at.asked()
    assert (asked.terminal, asked.stderr, streams.stderr) == (True, "", None)
    assert [(each.width, each.height) for each in at.shim.requested(pb.ResizePtyRequest)] == [
        (80, 24)
    ]
    assert streams.stdin is not None
    assert streams.stdout is not None
    os.write(streams.stdin, b"ls\n")
    opened = at.shim.streams[asked.exec_id]
    assert await asyncio.to_thread(os.read, opened["stdin"], 100) == b"ls\n"
    os.close(streams.stdin)
    await until(lambda: at.shim.requested(pb.CloseIORequest) != [])
    assert os.read(opened["stdin"], 100) == b""
    os.write(opened["stdout"], b"a file\n")
    assert os.read(streams.stdout, 100) == b"a file\n"
    os.close(streams.stdout)
    at.end(asked, 0)
    assert (await streams.child.wait()).exit_code == 0
    await until(lambda: not list(at.node.exec_dir.iterdir()))
