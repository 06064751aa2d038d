"""An OCI runtime and the monitors that run it, on a fake kernel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.config.model import HandlerKind
from cri_shim.errors import NotFoundError, RuntimeCommandError
from cri_shim.oci.runtime import (
    ExecCommand,
    ExecFiles,
    HandlerSettings,
    RuntimeFeatures,
    Runtimes,
    RuntimeState,
    RuntimeStats,
    RuntimeVersion,
)
from cri_shim.oci.spec.inputs import HandlerFacts
from cri_shim.oci.waiting_monitor import Monitored, MonitorIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.oci.conmon import MonitorRequest
    from cri_shim.oci.runtime import Runtime
    from cri_shim.oci.spec.inputs import Spec
    from tests.fakes.kernel import FakeProcess, Kernel


@dataclass
class Entry:
    """The runtime's state of a container."""

    status: str
    process: FakeProcess


class FakeRuntime:
    """A `Runtime` whose state is a dictionary."""

    def __init__(
        self, kernel: Kernel, name: str = "runc", kind: HandlerKind = HandlerKind.OCI
    ) -> None:
        self._kernel = kernel
        self.points = self._points = kernel.points
        self._settings = HandlerSettings(
            name=name, path=f"/usr/bin/{name}", root_dir=Path("/nonexistent"), kind=kind
        )
        self.containers: dict[str, Entry] = {}
        self.supports: RuntimeFeatures | None = RuntimeFeatures(mount_options=["rro"])
        self.updates: list[tuple[str, dict[str, Any]]] = []
        """The limits that containers got by updates."""
        self.refuses_updates = ""
        """In these words."""
        self.sent: list[int] = []
        """The signals that it was called to deliver."""
        self.ended_execs: list[tuple[str, int]] = []
        self.cleared: list[tuple[str, str]] = []
        self.uses = RuntimeStats()
        self.on_start: Callable[[FakeProcess], None] | None = None
        """Called when a container's process has started."""

    @property
    def settings(self) -> HandlerSettings:
        return self._settings

    def command_prefix(self) -> list[str]:
        return [self._settings.path]

    def environment(self) -> dict[str, str]:
        return {}

    async def create_prefix(self, *, joins_sandbox: bool) -> list[str]:
        return [self._settings.path]

    async def adapted(self, spec: Spec, *, joins_sandbox: bool) -> Spec:
        return spec

    async def start(self, container_id: str, bundle_dir: Path) -> None:
        await self._points.pass_by("runtime.start")
        entry = self.containers.get(container_id)
        if entry is None:
            raise NotFoundError("container", container_id, "runtime runc does not know it")
        if entry.process.pid not in self._kernel.processes:
            raise RuntimeCommandError("starting", ["runc"], "failed", "cannot start a stopped one")
        if entry.status != "created":
            raise RuntimeCommandError("starting", ["runc"], "failed", f"it is {entry.status}")
        entry.status = "running"
        if self.on_start is not None:
            self.on_start(entry.process)
        await self._points.pass_by("runtime.started")

    async def run(
        self, container_id: str, *, bundle_dir: Path, pid_file: Path, timeout_s: float
    ) -> int:
        command = self._kernel.spawn(("runc", "run", container_id))
        try:
            await self._points.pass_by("runtime.run")
            spec = json.loads((bundle_dir / "config.json").read_bytes())
            process = self._kernel.spawn(
                spec["process"]["args"], cgroup=spec["linux"]["cgroupsPath"].lstrip("/")
            )
            self.containers[container_id] = Entry("running", process)
            pid_file.write_text(str(process.pid))
        finally:
            self._kernel.end(command.pid)
        await self._points.pass_by("runtime.ran")  # whoever is interrupted here leaves a process
        return process.pid

    async def kill(
        self, container_id: str, signal_number: int, *, all_processes: bool = False
    ) -> bool:
        self.sent.append(signal_number)
        await self._points.pass_by("runtime.kill")
        entry = self.containers.get(container_id)
        if entry is None:
            return False
        return self._kernel.kill_process(entry.process.pid, None, signal_number)

    async def update(self, container_id: str, resources_file: Path) -> None:
        await self._points.pass_by("runtime.update")
        if self.refuses_updates:
            raise RuntimeCommandError("changing", ["runc"], "failed", self.refuses_updates)
        self.updates.append((container_id, json.loads(resources_file.read_bytes())))

    async def delete(self, container_id: str, *, force: bool = False) -> None:
        await self._points.pass_by("runtime.delete")
        entry = self.containers.pop(container_id, None)
        if entry is not None:
            self._kernel.kill_process(entry.process.pid, None)

    async def state(self, container_id: str) -> RuntimeState | None:
        await self._points.pass_by("runtime.state")
        entry = self.containers.get(container_id)
        return RuntimeState(container_id, entry.status, entry.process.pid) if entry else None

    async def exec_command(
        self, container_id: str, files: ExecFiles, console_socket: Path | None = None
    ) -> ExecCommand:
        return ExecCommand([self._settings.path, "exec", container_id])

    async def end_exec(self, container_id: str, files: ExecFiles, host_pid: int) -> None:
        self.ended_execs.append((container_id, host_pid))

    async def stats(self, container_id: str) -> RuntimeStats:
        await self._points.pass_by("runtime.stats")
        if container_id not in self.containers:
            raise RuntimeCommandError("asking", ["runc"], "failed", "is not running")
        return self.uses

    async def clear(self, object_id: str, pod_id: str) -> None:
        await self._points.pass_by("runtime.clear")
        self.cleared.append((object_id, pod_id))

    def cgroup_dirs(self, object_id: str, cgroup_dir: str) -> tuple[str, ...]:
        return (cgroup_dir,)

    async def features(self) -> RuntimeFeatures | None:
        await self._points.pass_by("runtime.features")
        return self.supports

    async def version(self) -> RuntimeVersion:
        return RuntimeVersion(self._settings.name, "1.0.0", "1.1.0")


class FakeHandlers:
    """As `Handlers`, with these runtimes. The first one is that of the default handler."""

    def __init__(self, runtimes: dict[str, FakeRuntime]) -> None:
        self._runtimes = runtimes
        self.recursive_read_only_mounts = False
        self.cleared_of_shims: list[tuple[str, str]] = []

    @property
    def runtimes(self) -> Runtimes:
        return Runtimes(self._runtimes.values(), default_handler="runc")

    def get(self, handler: str) -> Runtime:
        return self.runtimes.get(handler)

    async def clear_of_shim(self, handler: str, object_id: str) -> None:
        self.cleared_of_shims.append((handler, object_id))

    def facts(self, handler: str) -> HandlerFacts:
        return HandlerFacts(
            handler or "runc",
            user_namespaces=True,
            recursive_read_only_mounts=self.recursive_read_only_mounts,
        )


class FakeWaitingMonitor:
    """A `WaitingMonitor` on the fake kernel."""

    def __init__(
        self, kernel: Kernel, monitor: FakeProcess, create: Callable[[], FakeProcess]
    ) -> None:
        self._kernel = kernel
        self._points = kernel.points
        self._monitor = monitor
        self._create = create
        self.identity = MonitorIdentity(monitor.pid, monitor.start_ticks)
        self.is_waiting = True

    async def create(self, *, timeout_s: float) -> Monitored:
        self.is_waiting = False
        try:
            await self._points.pass_by("monitor.create")
            process = self._create()
            await self._points.pass_by("monitor.created")
        except BaseException:
            self._kill()
            raise
        return Monitored(self.identity, process.pid)

    async def end(self) -> None:
        if self.is_waiting:
            self.is_waiting = False
            self._kill()

    def _kill(self) -> None:
        # As the real ones: neither monitor nor process go on; cgroup and runtime state stay.
        kernel, pid = self._kernel, self._monitor.pid
        self._monitor.stopped = True
        for member in [p for p in kernel.processes.values() if p.parent == pid]:
            kernel.end(member.pid, 137)
        kernel.end(pid, 137)


class FakeMonitors:
    """Stands for `Monitors`, with the methods that the sandbox layer uses. The processes are on the fake kernel."""

    def __init__(self, kernel: Kernel, exits_dir: Path, runtimes: dict[str, FakeRuntime]) -> None:
        self._kernel = kernel
        self._points = kernel.points
        self._exits_dir = exits_dir
        self._runtimes = runtimes
        self.discarded: list[str] = []
        self.reopened: list[tuple[Path, Path]] = []
        self.requests: list[MonitorRequest] = []
        self.write_exit_files = True
        """Whether monitors write exit files."""

    async def start(
        self,
        request: MonitorRequest,
        runtime: Runtime,
        *,
        on_spawn: Callable[[MonitorIdentity], None],
    ) -> FakeWaitingMonitor:
        self.requests.append(request)
        await self._points.pass_by("monitor.spawn")
        monitor = self._kernel.spawn(("conmon", "--cid", request.container_id))
        waiting = FakeWaitingMonitor(
            self._kernel,
            monitor,
            lambda: self.create_process(request, monitor, self._runtimes[runtime.settings.name]),
        )
        try:
            on_spawn(waiting.identity)
        except BaseException:
            await waiting.end()
            raise
        return waiting

    def create_process(
        self, request: MonitorRequest, monitor: FakeProcess, runtime: FakeRuntime
    ) -> FakeProcess:
        spec = json.loads((request.bundle_dir / "config.json").read_bytes())
        container_id = request.container_id
        process = self._kernel.spawn(
            spec["process"]["args"],
            parent=monitor.pid,
            cgroup=spec["linux"]["cgroupsPath"].lstrip("/"),
        )
        process.on_end = lambda code: self._on_end(container_id, monitor.pid, code)
        runtime.containers[container_id] = Entry("created", process)
        request.pid_file.write_text(str(process.pid))
        return process

    def _on_end(self, container_id: str, monitor_pid: int, code: int) -> None:
        monitor = self._kernel.processes.get(monitor_pid)
        if monitor is None or monitor.stopped:
            return
        if self.write_exit_files:
            leave_exit_file(self._exits_dir, container_id, code)
            self._kernel.end(monitor.pid)

    def find_monitors(self) -> dict[str, list[MonitorIdentity]]:
        found: dict[str, list[MonitorIdentity]] = {}
        for process in self._kernel.processes.values():
            if process.argv[:2] in (("conmon", "--cid"), ("runc", "run")):
                identity = MonitorIdentity(process.pid, process.start_ticks)
                found.setdefault(process.argv[2], []).append(identity)
        return found

    async def monitors_of(self, container_id: str) -> list[MonitorIdentity]:
        return self.find_monitors().get(container_id, [])

    async def reopen_log(self, bundle_dir: Path, log_file: Path, *, timeout_s: float = 5.0) -> None:
        self.reopened.append((bundle_dir, log_file))

    def discard(self, container_id: str) -> None:
        self.discarded.append(container_id)


def leave_exit_file(exits_dir: Path, container_id: str, code: int | str) -> None:
    """Write the file as a monitor does, by rename."""
    half = exits_dir / f".{container_id}.half"
    half.write_text(str(code))
    half.rename(exits_dir / container_id)
