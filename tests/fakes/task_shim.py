"""A shim of containers in memory: its task API on a socket, and a program whose `start` says where that is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.background import Background
from cri_shim.config.model import HandlerKind
from cri_shim.oci.runtime import HandlerSettings
from cri_shim.oci.shim.requests import TaskPlan
from cri_shim.oci.shim.runtime import ShimRuntime
from cri_shim.oci.shim.shims import Shims
from cri_shim.oci.shim.streams import StreamsHolder
from cri_shim.ttrpc.errors import CallError, Code
from tests.fakes.ttrpc import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from google.protobuf.message import Message

    from cri_shim.host.process import Reaper
    from cri_shim.oci.shim.streams import Hold
    from cri_shim.paths import Paths

SERVICE = "containerd.task.v2.Task"
EXITED_AT = pb.Timestamp(seconds=1_700_000_000, nanos=5)


@dataclass
class _Process:
    pid: int
    started: bool = False
    code: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, code: int) -> None:
        if self.code is None:
            self.code = code
            self.ended.set()


class FakeShim:
    """The containers of one pod."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "task.sock"
        self.process = subprocess.Popen(["sleep", "1000"])
        self.processes: dict[tuple[str, str], _Process] = {}
        self.requests: list[Message] = []
        self.refusals: dict[str, CallError] = {}
        """What a method, by its name, answers instead of doing it."""
        self.hanging: set[str] = set()
        """Methods that never answer."""
        self.stats = pb.Any()
        self.streams: dict[str, dict[str, int]] = {}
        """What it has opened of each exec, by the stream's name, until the exec is deleted."""

    @property
    def program(self) -> Path:
        return self.directory / "containerd-shim-fake-v2"

    @property
    def verbs(self) -> list[str]:
        """The last words of its command lines."""
        file = self.directory / "verbs"
        return [line.split()[-1] for line in file.read_text().splitlines()] if file.exists() else []

    def write_program(self) -> None:
        answer = json.dumps({"version": 2, "address": f"unix://{self.socket}", "protocol": "ttrpc"})
        self.program.write_text(
            f'#!/bin/sh\necho "$*" >>{self.directory}/verbs\n'
            'if [ "$1" = -v ]; then echo "  Version:  9.9"; exit; fi\n'
            f"for word; do last=$word; done\n[ \"$last\" != start ] || echo '{answer}'\n"
        )
        self.program.chmod(0o755)

    def requested(self, kind: type[Message]) -> list[Any]:
        return [each for each in self.requests if isinstance(each, kind)]

    def end(self, task: str, code: int, exec_id: str = "") -> None:
        """A process ends by itself."""
        self.processes[task, exec_id].end(code)

    def methods(self) -> dict[str, Any]:
        handled = {
            "Create": (pb.CreateTaskRequest, self._create),
            "Start": (pb.StartRequest, self._start),
            "Exec": (pb.ExecProcessRequest, self._exec),
            "Kill": (pb.KillRequest, self._kill),
            "Wait": (pb.WaitRequest, self._wait),
            "Delete": (pb.DeleteRequest, self._delete),
            "State": (pb.StateRequest, self._state),
            "Stats": (pb.StatsRequest, self._stats),
            "Pids": (pb.PidsRequest, self._pids),
            "Update": (pb.UpdateTaskRequest, self._nothing),
            "ResizePty": (pb.ResizePtyRequest, self._nothing),
            "CloseIO": (pb.CloseIORequest, self._nothing),
            "Connect": (pb.ConnectRequest, self._connect),
            "Shutdown": (pb.ShutdownRequest, self._shutdown),
        }
        return {name: self._method(name, *each) for name, each in handled.items()}

    def _method(self, name: str, kind: type[Message], handle: Any) -> Any:
        async def method(payload: bytes) -> bytes:
            request = kind.FromString(payload)
            self.requests.append(request)
            if name in self.hanging:
                await asyncio.Event().wait()
            if name in self.refusals:
                raise self.refusals[name]
            answer = await handle(request)
            return bytes(answer.SerializeToString())

        return method

    def _find(self, request: Any) -> _Process:
        found = self.processes.get((request.id, getattr(request, "exec_id", "")))
        if found is None:
            raise CallError(Code.NOT_FOUND, f"{request.id}: not found")
        return found

    async def _create(self, request: pb.CreateTaskRequest) -> Message:
        self.processes[request.id, ""] = _Process(self.process.pid)
        return pb.CreateTaskResponse(pid=self.process.pid)

    async def _start(self, request: pb.StartRequest) -> Message:
        self._find(request).started = True
        return pb.StartResponse(pid=self.process.pid)

    async def _exec(self, request: pb.ExecProcessRequest) -> Message:
        self.processes[request.id, request.exec_id] = _Process(self.process.pid)
        named = {"stdin": request.stdin, "stdout": request.stdout, "stderr": request.stderr}
        self.streams[request.exec_id] = {
            name: os.open(path, os.O_RDONLY if name == "stdin" else os.O_WRONLY)
            for name, path in named.items()
            if path
        }
        return pb.Empty()

    async def _kill(self, request: pb.KillRequest) -> Message:
        process = self._find(request)
        if process.code is not None:
            raise CallError(Code.NOT_FOUND, "process already finished")
        process.end(128 + request.signal)
        return pb.Empty()

    async def _wait(self, request: pb.WaitRequest) -> Message:
        process = self._find(request)
        await process.ended.wait()
        return pb.WaitResponse(exit_status=process.code or 0, exited_at=EXITED_AT)

    async def _delete(self, request: pb.DeleteRequest) -> Message:
        process = self._find(request)
        if process.started and process.code is None:
            raise CallError(Code.FAILED_PRECONDITION, "cannot delete a running process")
        del self.processes[request.id, request.exec_id]
        for fd in self.streams.pop(request.exec_id, {}).values():
            os.close(fd)
        return pb.DeleteResponse(exit_status=process.code or 0)

    async def _state(self, request: pb.StateRequest) -> Message:
        process = self._find(request)
        status = pb.CREATED if not process.started else pb.RUNNING
        return pb.StateResponse(
            id=request.id,
            pid=process.pid,
            status=pb.STOPPED if process.code is not None else status,
        )

    async def _stats(self, _request: pb.StatsRequest) -> Message:
        return pb.StatsResponse(stats=self.stats)

    async def _pids(self, request: pb.PidsRequest) -> Message:
        return pb.PidsResponse(processes=[pb.ProcessInfo(pid=self._find(request).pid)])

    async def _nothing(self, _request: Message) -> Message:
        return pb.Empty()

    async def _connect(self, _request: pb.ConnectRequest) -> Message:
        return pb.ConnectResponse(shim_pid=self.process.pid)

    async def _shutdown(self, _request: pb.ShutdownRequest) -> Message:
        self.process.kill()
        return pb.Empty()


@asynccontextmanager
async def fake_shim(directory: Path) -> AsyncIterator[FakeShim]:
    """A shim that answers, for the block."""
    shim = FakeShim(directory)
    shim.write_program()
    try:
        async with serving({SERVICE: shim.methods()}, shim.socket):
            yield shim
    finally:
        shim.process.kill()
        shim.process.wait()


class FakeStreams:
    """What is held, and what was finished."""

    def __init__(self) -> None:
        self.held: dict[str, Hold] = {}
        self.expected: list[str] = []
        self.finished: list[tuple[str, bool]] = []
        self.on_size: Callable[[str, int, int], None] = lambda *_: None
        self.on_input_end: Callable[[str], None] = lambda *_: None

    def expect(self, pod_id: str) -> None:
        self.expected.append(pod_id)

    async def hold(self, request: Hold) -> None:
        self.held[request.id] = request

    async def finish(self, container_id: str, *, at_once: bool = False) -> None:
        self.finished.append((container_id, at_once))

    def close(self) -> None:
        pass


def shims_of(paths: Paths, reaper: Reaper) -> Shims:
    """What a daemon of these directories has for handlers of kind shim; nothing is started."""
    background = Background()
    streams = StreamsHolder(reaper, background, paths.streams_socket)
    return Shims(streams=streams, background=background, exits_dir=paths.exits_dir)


class ShimHandler:
    """A handler of kind shim, and the shim that its program starts; nothing holds streams."""

    def __init__(self, base: Path, shim: FakeShim, reaper: Reaper) -> None:
        self.shim = shim
        self.base = base
        self.streams = FakeStreams()
        self.background = Background()
        exits_dir = base / "exits"
        exits_dir.mkdir(exist_ok=True)
        self.shims = Shims(
            streams=cast("StreamsHolder", self.streams),
            background=self.background,
            exits_dir=exits_dir,
        )
        settings = HandlerSettings("shim", str(shim.program), base / "shims", HandlerKind.SHIM)
        self.runtime = ShimRuntime(settings, reaper, self.shims, timeout_s=5)

    async def run(self, object_id: str) -> None:
        """A pause container that runs, and its shim."""
        bundle = self.base / "bundle"
        bundle.mkdir()
        plan = TaskPlan(object_id, object_id, bundle)
        await self.runtime.create_task(plan, timeout_s=5, on_shim=lambda *_: None)
        await self.runtime.start(object_id, bundle)

    async def close(self) -> None:
        """End what follows the shim."""
        await self.background.close(0)
        self.shims.close()


@asynccontextmanager
async def shim_handler(base: Path, reaper: Reaper) -> AsyncIterator[ShimHandler]:
    """A handler whose shim answers, for the block."""
    async with fake_shim(base) as shim:
        handler = ShimHandler(base, shim, reaper)
        try:
            yield handler
        finally:
            await handler.close()
