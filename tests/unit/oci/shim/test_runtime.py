"""A runtime that is a shim: the life of pods and containers in one, deaths and hangs included."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.background import Background
from cri_shim.config.model import HandlerKind
from cri_shim.errors import (
    DeadlineError,
    NotFoundError,
    RuntimeCommandError,
    UnavailableError,
)
from cri_shim.host.process import Reaper
from cri_shim.oci.runtime import ExecFiles, HandlerSettings
from cri_shim.oci.shim import runtime as module
from cri_shim.oci.shim.records import read_record
from cri_shim.oci.shim.requests import TaskPlan
from cri_shim.oci.shim.runtime import ShimRuntime
from cri_shim.oci.shim.shims import Shims
from cri_shim.ttrpc.errors import CallError, Code
from tests.fakes.clock import until
from tests.fakes.task_shim import EXITED_AT, FakeShim, FakeStreams, fake_shim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cri_shim.oci.shim.streams import StreamsHolder

pytestmark = pytest.mark.asyncio
POD, ONE = "p" * 64, "c" * 64


class Scene:
    """A handler, and the shim that its program starts."""

    def __init__(self, base: Path, shim: FakeShim, reaper: Reaper) -> None:
        self.shim = shim
        self.base = base
        self.streams = FakeStreams()
        self.background = Background()
        self.exits = base / "exits"
        self.exits.mkdir()
        self.shims = Shims(
            streams=cast("StreamsHolder", self.streams),
            background=self.background,
            exits_dir=self.exits,
        )
        self.settings = HandlerSettings(
            "shim", str(shim.program), base / "root", HandlerKind.SHIM, config_path="/etc/kata.toml"
        )
        self._reaper = reaper
        self.runtime = self.runtime_of(self.settings)
        self.told: list[tuple[int, int]] = []

    def runtime_of(self, settings: HandlerSettings) -> ShimRuntime:
        return ShimRuntime(settings, self._reaper, self.shims, timeout_s=1)

    def plan(self, object_id: str, **fields: object) -> TaskPlan:
        bundle = self.base / object_id[:1]
        bundle.mkdir(exist_ok=True)
        return TaskPlan(object_id, POD, bundle, **fields)  # type: ignore[arg-type]

    async def create(self, object_id: str, **fields: object) -> None:
        await self.runtime.create_task(
            self.plan(object_id, **fields),
            timeout_s=5,
            on_shim=lambda *process: self.told.append(process),
        )

    async def both(self) -> None:
        """A pod and a container, running."""
        for each in (POD, ONE):
            await self.create(each)
            await self.runtime.start(each, self.base)

    async def exit_of(self, object_id: str) -> tuple[str, int]:
        file = self.exits / object_id
        await until(file.exists)
        return file.read_text(), file.stat().st_mtime_ns


@asynccontextmanager
async def scene(base: Path) -> AsyncIterator[Scene]:
    reaper = Reaper()
    reaper.open()
    try:
        async with fake_shim(base) as shim:
            made = Scene(base, shim, reaper)
            yield made
            await made.background.close(0)
            made.shims.close()
    finally:
        reaper.close()


async def test_a_pod_starts_a_shim_and_its_containers_join_it(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.create(POD)
        await at.create(ONE, log_file=short_path / "log", stdin=True)
        assert at.shim.verbs == ["start"]
        assert [pid for pid, _ in at.told] == [at.shim.process.pid]
        pod, one = at.shim.requested(pb.CreateTaskRequest)
        assert (pod.id, pod.stdout, pod.stderr, pod.stdin) == (POD, "", "", "")
        assert one.stdout == str(short_path / "c" / "stdout")
        assert one.stderr == str(short_path / "c" / "stderr")
        assert one.stdin == str(short_path / "c" / "stdin")
        assert pb.RuntimeOptions.FromString(one.options.value).config_path == "/etc/kata.toml"
        assert list(at.streams.held) == [ONE]
        assert at.streams.held[ONE].log == str(short_path / "log")
        assert at.shims.connections == 1
        assert (short_path / "p" / "log").is_symlink()


async def test_runcs_shim_gets_its_own_options(short_path: Path) -> None:
    async with scene(short_path) as at:
        renamed = at.shim.program.rename(short_path / "containerd-shim-runc-v2")
        at.runtime = at.runtime_of(replace(at.settings, path=str(renamed)))
        assert at.runtime.runs_runc
        await at.create(POD)
        (pod,) = at.shim.requested(pb.CreateTaskRequest)
        assert pod.options.type_url == "containerd.runc.v1.Options"
        assert pb.RuncOptions.FromString(pod.options.value).root == str(
            short_path / "root" / "runc"
        )


async def test_the_end_of_a_container_is_an_exit_file_with_its_time(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.both()
        at.shim.end(ONE, 42)
        code, at_ns = await at.exit_of(ONE)
        assert (code, at_ns) == ("42", EXITED_AT.seconds * 10**9 + EXITED_AT.nanos)
        assert at.streams.finished == [(ONE, False)]
        at.shim.end(POD, 0)
        assert (await at.exit_of(POD))[0] == "0"


async def test_a_later_daemon_takes_a_container_over(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.both()
        await at.background.close(0)
        at.shims.close()
        at.shim.end(ONE, 7)
        await at.runtime.adopt(at.plan(ONE))
        assert (await at.exit_of(ONE))[0] == "7"


async def test_kill_and_state_tell_what_runs(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.create(POD)
        await at.create(ONE)
        state = await at.runtime.state(ONE)
        assert state is not None
        assert (state.status, state.pid) == ("created", at.shim.process.pid)
        await at.runtime.start(ONE, short_path)
        assert await at.runtime.kill(ONE, signal.SIGTERM)
        assert not await at.runtime.kill(ONE, signal.SIGTERM)
        assert not await at.runtime.kill("unknown", signal.SIGTERM)
        assert await at.runtime.state("unknown") is None
        at.shim.refusals["Kill"] = CallError(Code.UNKNOWN, "permission denied")
        with pytest.raises(RuntimeCommandError, match="permission denied"):
            await at.runtime.kill(ONE, signal.SIGTERM)


async def test_a_deletion_ends_the_container_and_that_of_the_pod_the_shim(
    short_path: Path,
) -> None:
    async with scene(short_path) as at:
        await at.both()
        await at.runtime.delete(ONE, force=True)
        assert (ONE, "") not in at.shim.processes
        await at.runtime.delete(ONE, force=True)
        assert at.shim.process.poll() is None
        await at.runtime.delete(POD, force=True)
        assert at.shim.process.wait(20) == -signal.SIGKILL
        await at.runtime.clear(ONE, POD)
        await at.runtime.clear(POD, POD)
        assert not at.shim.socket.exists()
        assert read_record(at.settings.root_dir, POD) is None
        assert (ONE, True) in at.streams.finished
        await at.runtime.delete(POD, force=True)


async def test_what_a_dead_shim_had_goes_by_the_verb(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(short_path) as at:
        await at.both()
        at.shims.disconnect(str(at.shim.socket))
        at.shim.socket.unlink()
        with pytest.raises(UnavailableError):
            await at.runtime.kill(ONE, signal.SIGKILL)
        await at.runtime.delete(ONE, force=True)
        assert at.shim.verbs == ["start", "delete"]
        at.shim.program.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
        with pytest.raises(RuntimeCommandError, match="broken"):
            await at.runtime.delete(POD, force=True)


async def test_a_shim_that_hangs_fails_its_calls_at_their_deadlines(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.both()
        at.shim.hanging |= {"Kill", "State"}
        with pytest.raises(DeadlineError):
            await at.runtime.state(ONE)
        with pytest.raises(DeadlineError):
            await at.runtime.delete(ONE, force=True)


async def test_a_shim_that_does_not_start_says_why(short_path: Path) -> None:
    async with scene(short_path) as at:
        at.shim.program.write_text("#!/bin/sh\necho no kvm >&2; exit 1\n")
        with pytest.raises(RuntimeCommandError, match="no kvm"):
            await at.create(POD)
        at.shim.program.write_text("#!/bin/sh\necho hello\n")
        with pytest.raises(RuntimeCommandError, match="no address"):
            await at.create(POD)
        with pytest.raises(UnavailableError, match="no shim"):
            await at.create(ONE)
        at.shim.program.unlink()
        with pytest.raises(RuntimeCommandError, match="not found"):
            await at.create(POD)


async def test_versions_limits_and_usage(short_path: Path) -> None:
    async with scene(short_path) as at:
        assert (await at.runtime.version()).version == "9.9"
        assert await at.runtime.features() is None
        await at.both()
        (short_path / "r.json").write_bytes(b'{"cpu":{}}')
        await at.runtime.update(ONE, short_path / "r.json")
        (update,) = at.shim.requested(pb.UpdateTaskRequest)
        assert update.resources.value == b'{"cpu":{}}'
        metrics = pb.CgroupV2(pids=pb.PidsUsage(current=4))
        at.shim.stats.CopyFrom(
            pb.Any(type_url="io.containerd.cgroups.v2.Metrics", value=metrics.SerializeToString())
        )
        assert (await at.runtime.stats(ONE)).pids.current == 4
        assert at.runtime.cgroup_dirs(ONE, "a/b") == ("a/b",)
        at.shim.program.write_text("#!/bin/sh\nexit 1\n")
        with pytest.raises(RuntimeCommandError, match="version"):
            await at.runtime.version()


async def test_an_exec_has_pipes_of_ours_and_its_own_end(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.both()
        files = ExecFiles(*(short_path / f"e.{each}" for each in ("json", "pid", "inner")))
        files.process.write_text(json.dumps({"args": ["true"]}))
        reading, writing = os.pipe()
        try:
            child = await at.runtime.exec_task(
                ONE, files, terminal=False, streams=(None, writing, writing), timeout_s=5
            )
            (request,) = at.shim.requested(pb.ExecProcessRequest)
            assert (request.exec_id, request.stdin) == ("e", "")
            assert os.stat(request.stdout).st_ino == os.fstat(writing).st_ino
            assert json.loads(request.spec.value) == {"args": ["true"]}
        finally:
            os.close(reading)
            os.close(writing)
        assert child.ending is None
        assert await child.wait_at_most(0) is None
        await child.resize(80, 24)
        child.end_input()
        await until(lambda: at.shim.requested(pb.CloseIORequest))
        at.shim.end(ONE, 5, "e")
        assert (await child.wait()).exit_code == 5
        assert child.settled
        assert (ONE, "e") not in at.shim.processes


async def test_an_exec_that_is_refused_or_ended_leaves_nothing(short_path: Path) -> None:
    async with scene(short_path) as at:
        await at.both()
        files = ExecFiles(*(short_path / f"e.{each}" for each in ("json", "pid", "inner")))
        files.process.write_text("{}")
        at.shim.refusals["Start"] = CallError(Code.UNKNOWN, 'exec: "x": not found: unknown')
        with pytest.raises(RuntimeCommandError, match='exec: "x": not found'):
            await at.runtime.exec_task(
                ONE, files, terminal=True, streams=(None, None, None), timeout_s=5
            )
        assert (ONE, "e") not in at.shim.processes
        at.shim.refusals.clear()
        child = await at.runtime.exec_task(
            ONE, files, terminal=True, streams=(None, None, None), timeout_s=5
        )
        await at.runtime.end_exec(ONE, files, child.pid)
        assert (await child.wait()).exit_code == 137
        await at.runtime.end_exec("unknown", files, 0)


async def test_without_a_shim_there_is_nothing_to_start(short_path: Path) -> None:
    async with scene(short_path) as at:
        with pytest.raises(NotFoundError):
            await at.runtime.start(ONE, short_path)
        assert module.KILLED_S > 0
        await asyncio.sleep(0)
