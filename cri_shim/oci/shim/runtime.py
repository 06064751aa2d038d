"""A runtime that is a shim of containerd's, version 2: the operations of `oci/runtime` by calls of its task API.

Rules:
- A pod has one shim, which its pause container's creation starts. Its containers are created by calls to it.
- The shim is the monitor: it holds a container's end of the streams, and its death is the monitor's.
- What is known of an object is in its record (`records`): a method needs the ID alone, also for a later daemon.
- Nothing is trusted to be alive. A shim that hangs fails its calls at their deadlines, and one that is dead has its
  `delete` verb called, which ends and forgets what it ran.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.errors import (
    CriShimError,
    NotFoundError,
    RuntimeCommandError,
    UnavailableError,
)
from cri_shim.host.pidfd import ends_of, start_time_ticks
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.runtime import RuntimeState
from cri_shim.oci.runtime_errors import runtime_message
from cri_shim.oci.shim import bootstrap
from cri_shim.oci.shim.exec import ShimExec
from cri_shim.oci.shim.records import ShimRecord, read_record, write_record
from cri_shim.oci.shim.requests import (
    CreatedTask,
    TaskPlan,
    create_request,
    exec_request,
    hold_request,
    runc_options,
    runtime_options,
)
from cri_shim.oci.shim.stats import read_stats
from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.host.process import Reaper
    from cri_shim.oci.runtime import (
        ExecFiles,
        HandlerSettings,
        RuntimeFeatures,
        RuntimeStats,
        RuntimeVersion,
    )
    from cri_shim.oci.shim.shims import Shims
    from cri_shim.oci.shim.task import Task

log = structlog.get_logger()
KILLED_S = 10.0
"""How long a deletion by force waits for what it has killed."""
FAREWELL_S = 2.0
"""How long a shim that was told to end may take, before it is killed."""
_STATES = {
    pb.CREATED: "created",
    pb.RUNNING: "running",
    pb.STOPPED: "stopped",
    pb.PAUSED: "paused",
    pb.PAUSING: "paused",
}


class ShimRuntime(CliRuntime):
    """One handler's shims."""

    def __init__(
        self,
        settings: HandlerSettings,
        reaper: Reaper,
        shims: Shims,
        *,
        timeout_s: float,
        systemd_cgroup: bool = False,
    ) -> None:
        super().__init__(settings, reaper, timeout_s=timeout_s, systemd_cgroup=systemd_cgroup)
        self._shims = shims

    @property
    def runs_runc(self) -> bool:
        """Whether it is the shim that drives runc, whose options are its own."""
        return "-shim-runc-" in os.path.basename(self.settings.path)

    # --- what it is

    async def version(self) -> RuntimeVersion:
        """The shim's version. Raises RuntimeCommandError, DeadlineError."""
        argv = [self._executable(), "-v"]
        done = await self._reaper.run(argv, timeout_s=self._timeout_s, env=self.environment())
        if not done.ok:
            raise RuntimeCommandError(
                f"runtime handler {self.settings.name!r}: asking for its version",
                argv,
                done.ending.describe(),
                runtime_message(done.stderr_tail),
            )
        return bootstrap.parse_version(
            os.path.basename(argv[0]), done.stdout.decode("utf-8", "replace")
        )

    async def features(self) -> RuntimeFeatures | None:
        """Those of the runc that the shim drives; None for other shims, of which nothing is known."""
        if not self.runs_runc:
            return None
        runc = CliRuntime(
            replace(self.settings, path="runc", args=()), self._reaper, timeout_s=self._timeout_s
        )
        return await runc.features()

    # --- the life of a container

    async def create_task(
        self, plan: TaskPlan, *, timeout_s: float, on_shim: Callable[[int, int], None]
    ) -> CreatedTask:
        """Create a container; for a pod start its shim first, of which `on_shim(pid, start time)` is told.

        Raises RuntimeCommandError with the runtime's own words, DeadlineError, UnavailableError without a shim.
        """
        record = (
            await self._start_shim(plan, timeout_s, on_shim)
            if plan.is_pod
            else self._record_of_pod(plan)
        )
        task = await self._shims.task(record, handler=self.settings.name, timeout_s=self._timeout_s)
        write_record(
            self.settings.root_dir,
            plan.object_id,
            msgspec.structs.replace(record, bundle_dir=str(plan.bundle_dir)),
        )
        if plan.is_pod:
            self._shims.streams.expect(plan.pod_id)
        else:
            await self._shims.streams.hold(hold_request(plan))
        pid = await task.create(create_request(plan, self._options()), timeout_s=timeout_s)
        self._follow(plan, record, task)
        return CreatedTask(pid, record.pid, record.start_ticks)

    def _record_of_pod(self, plan: TaskPlan) -> ShimRecord:
        record = read_record(self.settings.root_dir, plan.pod_id)
        if record is None:
            raise UnavailableError(f"container {plan.object_id}: its pod {plan.pod_id} has no shim")
        return record

    async def _start_shim(
        self, plan: TaskPlan, timeout_s: float, on_shim: Callable[[int, int], None]
    ) -> ShimRecord:
        doing = f"pod {plan.pod_id}: starting its shim (runtime handler {self.settings.name!r})"
        argv = [self._executable(), *self.settings.args, *bootstrap.start_words(plan.pod_id)]
        bootstrap.silence_log(plan.bundle_dir)
        with step(f"{self.settings.name} shim start"):
            try:
                done = await self._reaper.run(
                    argv, timeout_s=timeout_s, env=self._environment(), cwd=plan.bundle_dir
                )
            except OSError as error:
                raise RuntimeCommandError(doing, argv, "could not be run", str(error)) from error
        if not done.ok:
            words = runtime_message(done.stderr_tail)
            raise RuntimeCommandError(doing, argv, done.ending.describe(), words)
        try:
            shim = bootstrap.parse_start_answer(done.stdout)
        except ValueError as error:
            raise RuntimeCommandError(doing, argv, "has not started", str(error)) from error
        task = await self._shims.connect(
            shim, handler=self.settings.name, timeout_s=self._timeout_s
        )
        pid = await task.shim_pid(plan.pod_id)
        ticks = start_time_ticks(pid)
        if ticks is None:
            raise RuntimeCommandError(doing, argv, "has not started", f"process {pid} is gone")
        on_shim(pid, ticks)
        return ShimRecord(plan.pod_id, str(plan.bundle_dir), shim.socket, shim.version, pid, ticks)

    def _environment(self) -> dict[str, str]:
        # What containerd gives it as well; without an address of events it tells nobody of any.
        return {"MAX_SHIM_VERSION": "3", "GOMAXPROCS": "2", **self.environment()}

    def _options(self) -> pb.Any | None:
        if self.runs_runc:
            return runc_options(self.settings.root_dir / "runc", systemd=self._systemd_cgroup)
        return runtime_options(self.settings)

    async def adopt(self, plan: TaskPlan) -> None:
        """Find the shim of an object that a former daemon made: hold its streams, and wait for its end.

        Raises UnavailableError for a shim that is gone, CriShimError.
        """
        record = self._known(plan.object_id)
        if plan.is_pod:
            self._shims.streams.expect(plan.pod_id)
        else:
            await self._shims.streams.hold(hold_request(plan))
        task = await self._task(record)
        self._follow(plan, record, task)

    def _follow(self, plan: TaskPlan, record: ShimRecord, task: Task) -> None:
        self._shims.follow(
            plan.object_id, task, lambda: self._task(record), has_streams=not plan.is_pod
        )

    async def start(self, container_id: str, bundle_dir: Path) -> None:
        """Let a created container's process run. Raises NotFoundError, RuntimeCommandError, DeadlineError."""
        await (await self._task_of(container_id)).start(container_id)

    async def kill(
        self, container_id: str, signal_number: int, *, all_processes: bool = False
    ) -> bool:
        """Send a signal to the container's first process, or to all; False when it has ended or is gone.

        Raises CriShimError.
        """
        try:
            task = await self._task_of(container_id)
            await task.kill(container_id, signal_number, everything=all_processes)
        except NotFoundError:
            return False
        except RuntimeCommandError as error:
            if "already finished" in error.stderr_tail or "not running" in error.stderr_tail:
                return False
            raise
        return True

    async def delete(self, container_id: str, *, force: bool = False) -> None:
        """Have the shim forget a container, with `force` in any state; the pod's own ends its shim.

        A shim that is gone has its `delete` verb called. Raises DeadlineError, CriShimError.
        """
        record = read_record(self.settings.root_dir, container_id)
        if record is None:
            return
        try:
            task = await self._task(record)
            if force:
                await self._end(task, container_id)
            with contextlib.suppress(NotFoundError):
                await task.delete(container_id)
            if record.pod_id == container_id:
                await self._shut_down(task, record)
        except UnavailableError:
            self._shims.disconnect(record.socket)
            await self._delete_by_verb(container_id, record)

    async def _end(self, task: Task, container_id: str) -> None:
        try:
            await task.kill(container_id, signal.SIGKILL, everything=True)
        except (NotFoundError, RuntimeCommandError) as error:
            log.debug("nothing to kill", id=container_id, error=str(error))
        try:
            await task.wait(container_id, timeout_s=KILLED_S)
        except (NotFoundError, RuntimeCommandError) as error:
            log.debug("nothing to wait for", id=container_id, error=str(error))

    async def _shut_down(self, task: Task, record: ShimRecord) -> None:
        with contextlib.suppress(CriShimError):  # it may end before it answers
            await task.shutdown(record.pod_id)
        self._shims.disconnect(record.socket)
        await ends_of([(record.pid, record.start_ticks)], FAREWELL_S)

    async def _delete_by_verb(self, container_id: str, record: ShimRecord) -> None:
        bundle_dir = Path(record.bundle_dir)
        if not bundle_dir.is_dir():
            return
        doing = f"{container_id}: cleaning up after its shim"
        words = bootstrap.delete_words(container_id, bundle_dir)
        argv = [self._executable(), *self.settings.args, *words]
        try:
            done = await self._reaper.run(
                argv, timeout_s=self._timeout_s, env=self._environment(), cwd=bundle_dir
            )
        except OSError as error:
            raise RuntimeCommandError(doing, argv, "could not be run", str(error)) from error
        if not done.ok:
            words_said = runtime_message(done.stderr_tail)
            raise RuntimeCommandError(doing, argv, done.ending.describe(), words_said)

    async def clear(self, object_id: str, pod_id: str) -> None:
        """Take away what is kept of an object whose processes are gone. Raises OSError, DeadlineError."""
        await self._shims.clear(self.settings.root_dir, object_id)

    def cgroup_dirs(self, object_id: str, cgroup_dir: str) -> tuple[str, ...]:
        """The one that the runtime was told."""
        return (cgroup_dir,)

    # --- looking, and changing what runs

    async def state(self, container_id: str) -> RuntimeState | None:
        """The shim's view of a container; None when it knows no such container. Raises CriShimError."""
        try:
            answer = await (await self._task_of(container_id)).state(container_id)
        except NotFoundError:
            return None
        status = _STATES.get(answer.status, "unknown")
        return RuntimeState(container_id, status, answer.pid, answer.bundle)

    async def update(self, container_id: str, resources_file: Path) -> None:
        """Set a container's limits. Raises UnsupportedError, RuntimeCommandError, DeadlineError."""
        task = await self._task_of(container_id)
        await task.update(container_id, resources_file.read_bytes())

    async def stats(self, container_id: str) -> RuntimeStats:
        """What a running container uses. Raises CriShimError."""
        return read_stats(await (await self._task_of(container_id)).stats(container_id))

    # --- execs

    async def exec_task(
        self,
        container_id: str,
        files: ExecFiles,
        *,
        terminal: bool,
        streams: tuple[int | None, int | None, int | None],
        timeout_s: float,
    ) -> ShimExec:
        """Start one more process, whose streams are the given ends of pipes, which must stay open until then.

        Raises RuntimeCommandError with the runtime's own words, DeadlineError, NotFoundError.
        """
        task = await self._task_of(container_id)
        request = exec_request(container_id, files, streams, terminal=terminal)
        exec_id = request.exec_id
        await task.exec(request, timeout_s=timeout_s)
        try:
            pid = await task.start(container_id, exec_id, timeout_s=timeout_s)
        except BaseException:
            with contextlib.suppress(CriShimError):
                await task.delete(container_id, exec_id)
            raise
        return ShimExec(task, container_id, exec_id, pid, self._shims.background)

    async def end_exec(self, container_id: str, files: ExecFiles, host_pid: int) -> None:
        """Kill an exec, also a former daemon's; raises nothing."""
        exec_id = files.process.stem
        try:
            task = await self._task_of(container_id)
            await task.kill(container_id, signal.SIGKILL, exec_id=exec_id, everything=True)
            await task.wait(container_id, exec_id, timeout_s=KILLED_S)
            await task.delete(container_id, exec_id)
        except CriShimError as error:
            log.debug("exec not ended", container_id=container_id, error=str(error))

    # --- shims

    def _known(self, object_id: str) -> ShimRecord:
        record = read_record(self.settings.root_dir, object_id)
        if record is None:
            raise NotFoundError("container", object_id, "no shim is known to have it")
        return record

    async def _task(self, record: ShimRecord) -> Task:
        return await self._shims.task(record, handler=self.settings.name, timeout_s=self._timeout_s)

    async def _task_of(self, object_id: str) -> Task:
        return await self._task(self._known(object_id))
