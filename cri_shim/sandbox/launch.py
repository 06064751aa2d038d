"""Creates a process from an image and a runtime-spec, for pause containers and ordinary ones.

Both have an overlay root file system, a bundle, and a process that the OCI runtime creates. A container is created
under a monitor. A pause process has no streams, no log and no exit code of interest, so the runtime starts it without
a monitor. (A pause container with its own kernel has a monitor: see `pause`.)

The undo of each effect is pushed on the caller's `Rollback` before the effect. `teardown` implements it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import CriShimError, DeadlineError, host_step
from cri_shim.host.files import write_atomic
from cri_shim.kernel_call import in_time_for
from cri_shim.oci.conmon import MonitorRequest
from cri_shim.oci.shim.requests import TaskPlan
from cri_shim.oci.shim.runtime import ShimRuntime
from cri_shim.oci.spec.container import encode_spec
from cri_shim.quoting import quoted
from cri_shim.sandbox.exec.files_limits import limit_files
from cri_shim.sandbox.store.model import Process
from cri_shim.sandbox.store.processes import Held, note_top_process
from cri_shim.slots import Share, Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from cri_shim.host.cgroups.placement import CgroupPath
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.oci.conmon import Monitors
    from cri_shim.oci.runtime import Runtime
    from cri_shim.oci.spec.inputs import Spec
    from cri_shim.oci.waiting_monitor import WaitingMonitor
    from cri_shim.paths import ObjectPaths, Paths
    from cri_shim.rollback import Rollback
    from cri_shim.sandbox.spec.user_namespace import PodUserNamespace
    from cri_shim.sandbox.teardown import Teardown


MAX_OF_POD = 4
"""Creations of one pod at a time. A container's mounts can make its runtime hang, or run for minutes."""
MIN_SLOW = 32
"""Slow creations beside the others. Each takes some 20 MB, for a monitor and a runtime."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The plan of a launch."""

    object_id: str
    pod_id: str
    tenant: str
    """The tenant, for `slots`."""
    paths: ObjectPaths
    runtime: Runtime
    cgroup_path: CgroupPath
    layers: Sequence[str]
    """Short names of the layers, the topmost first."""
    label: str = ""
    """SELinux label of the root file system's files."""
    monitored: bool = True
    """Whether `create` follows, which starts a monitor, or `run`."""
    files_limit: int | None = None
    """The limit of open files of the container; None or -1 for none."""
    log_file: Path | None = None
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False

    @property
    def joins_sandbox(self) -> bool:
        """Whether it is an ordinary container, which joins its pod's pause container."""
        return self.object_id != self.pod_id

    @property
    def task_plan(self) -> TaskPlan:
        """What a shim is told, where one creates it."""
        return TaskPlan(
            self.object_id,
            self.pod_id,
            self.paths.bundle_dir,
            self.log_file,
            self.terminal,
            self.stdin,
            self.stdin_once,
        )

    @property
    def held(self) -> Held:
        """Identifies the processes for their teardown."""
        return Held(
            self.object_id,
            self.pod_id,
            self.runtime.settings.name,
            self.cgroup_path.relative_dir,
            self.paths,
        )


@dataclass(frozen=True, slots=True)
class Created:
    """The processes of a created container, which waits for its start."""

    process: Process
    monitor: Process


class Launcher:
    """Creates monitored containers and runs others, a bounded number in parallel."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        monitors: Monitors,
        teardown: Teardown,
        cgroups: Cgroups,
        start_timeout_s: float,
        max_parallel: int,
    ) -> None:
        self._host = host
        self._paths = paths
        self._monitors = monitors
        self._teardown = teardown
        self._cgroups = cgroups
        self._start_timeout_s = start_timeout_s
        self._slots = Slots(max_parallel, slow_total=max(MIN_SLOW, 2 * max_parallel))
        self._max_early = max_parallel
        self._early: set[WaitingMonitor] = set()
        """Monitors that were started early. `start_early` removes those that do not wait any more."""

    async def mount_rootfs(
        self,
        launch: Launch,
        rollback: Rollback,
        users: PodUserNamespace | None = None,
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the bundle directory, and mount the overlay root file system in it, ID-mapped to the pod's `users`.

        `then` runs afterwards in the same thread, and may block. If the mount hangs and completes after the undo,
        `then` fails, since the bundle is gone. The last effect of `then` may hang for ever.

        Raises what `then` raises; ResourceExhaustedError if the disk, or the page with the mount options, is full.
        """
        rollback.push("bundle", lambda: self._teardown.state_files(launch.paths))
        rollback.push("rootfs", lambda: self._teardown.mounts(launch.paths))
        await in_time_for(
            f"pod {launch.pod_id}",
            "preparing files and mounts",
            self._mount_rootfs,
            launch,
            users,
            then,
        )

    def _mount_rootfs(
        self,
        launch: Launch,
        users: PodUserNamespace | None,
        then: Callable[[], None],
    ) -> None:
        paths = launch.paths
        what = f"{launch.object_id}: preparing the bundle and root file system"
        with host_step(what):
            _make_bundle(paths, users, monitored=launch.monitored)
            self._host.mount_overlay(
                paths.rootfs_dir,
                layers_dir=self._paths.layers_dir,
                lowers=launch.layers,
                upper=paths.upper_dir,
                work=paths.work_dir,
                userns_fd=None if users is None else users.fd,
                label=launch.label,
            )
        then()

    def _check_cgroup(self, launch: Launch, pid: int) -> None:
        """Verify that the runtime put the process into its cgroup. Elsewhere its limits do not hold (CVE-2025-47291).

        Not checked for runtimes with their own kernels, which choose the cgroups themselves.
        """
        if launch.runtime.settings.own_kernel:
            return
        found, wanted = self._cgroups.cgroup_of(pid), launch.cgroup_path.relative_dir
        if found is not None and f"{found}/".startswith(f"{wanted}/"):
            return
        entry = self._host.process_entry(pid)
        if entry is not None and not entry.zombie:  # an ended process is in no cgroup any more
            raise CriShimError(
                f"{launch.object_id}: the OCI runtime put process {pid} in cgroup {quoted(found)} "
                f"instead of {quoted(wanted)}, where its limits apply"
            )

    async def start_early(self, launch: Launch, rollback: Rollback) -> WaitingMonitor | None:
        """Start the monitor before the spec is built, so that it loads meanwhile. None if enough of them wait already.

        The root file system must be mounted and the log prepared. A caller that does not call `create` must end it; the
        rollback does so as well. Raises what `create` raises.
        """
        self._early = {monitor for monitor in self._early if monitor.is_waiting}
        if len(self._early) >= self._max_early or isinstance(launch.runtime, ShimRuntime):
            return None
        monitor = await self._start(launch, rollback)
        self._early.add(monitor)
        return monitor

    async def _start(self, launch: Launch, rollback: Rollback) -> WaitingMonitor:
        paths = launch.paths
        started: list[WaitingMonitor] = []

        async def end() -> None:
            for monitor in started:
                await monitor.end()

        rollback.push("monitor", end)
        request = MonitorRequest(
            container_id=launch.object_id,
            bundle_dir=paths.bundle_dir,
            pid_file=paths.pid_file,
            log_file=launch.log_file,
            persist_dir=paths.persist_dir,
            terminal=launch.terminal,
            stdin=launch.stdin,
            stdin_once=launch.stdin_once,
            joins_sandbox=launch.joins_sandbox,
        )
        monitor = await self._monitors.start(
            request,
            launch.runtime,
            on_spawn=lambda monitor: note_top_process(
                paths, Process(monitor.pid, monitor.start_time_ticks)
            ),
        )
        started.append(monitor)
        return monitor

    async def create(
        self,
        launch: Launch,
        spec: Spec,
        rollback: Rollback,
        monitor: WaitingMonitor | None = None,
    ) -> Created:
        """Write the runtime-spec, and create the container by `monitor`, or by a new one.

        Raises RuntimeCommandError with the runtime's message, MonitorError, DeadlineError after `start_timeout`,
        TooManyFilesError.
        """
        spec = await launch.runtime.adapted(spec, joins_sandbox=launch.joins_sandbox)
        self._write_spec(launch, spec, rollback)
        async with self._slot(launch):
            if isinstance(launch.runtime, ShimRuntime):
                return await self._create_in_shim(launch, launch.runtime)
            if monitor is None:
                monitor = await self._start(launch, rollback)
            monitored = await monitor.create(timeout_s=self._start_timeout_s)
        process = self._named(launch, monitored.container_pid, "its start")
        self._check_cgroup(launch, process.pid)
        if launch.files_limit is not None and launch.files_limit > 0:
            await limit_files(
                self._cgroups, launch.object_id, launch.cgroup_path.relative_dir, launch.files_limit
            )
        return Created(
            process=process,
            monitor=Process(monitored.monitor.pid, monitored.monitor.start_time_ticks),
        )

    async def _create_in_shim(self, launch: Launch, runtime: ShimRuntime) -> Created:
        """Nothing else is to be undone than a process: the shim has all there is."""
        created = await runtime.create_task(
            launch.task_plan,
            timeout_s=self._start_timeout_s,
            on_shim=lambda pid, ticks: note_top_process(launch.paths, Process(pid, ticks)),
        )
        return Created(
            process=self._named(launch, created.pid, "it was started"),
            monitor=Process(created.shim_pid, created.shim_start_ticks),
        )

    async def run(self, launch: Launch, spec: Spec, rollback: Rollback) -> Process:
        """Write the runtime-spec, and have the runtime create and start the container without a monitor.

        Raises RuntimeCommandError with the runtime's message, DeadlineError after `start_timeout`.
        """
        paths = launch.paths
        self._write_spec(launch, spec, rollback)
        async with self._slot(launch):
            pid = await launch.runtime.run(
                launch.object_id,
                bundle_dir=paths.bundle_dir,
                pid_file=paths.pid_file,
                timeout_s=self._start_timeout_s,
            )
        process = self._named(launch, pid, "its start time was read")
        # If the daemon is killed before this, its successor finds the process by its cgroup.
        note_top_process(paths, process)
        self._check_cgroup(launch, pid)
        return process

    def _write_spec(self, launch: Launch, spec: Spec, rollback: Rollback) -> None:
        with host_step(f"{launch.object_id}: writing the runtime-spec"):
            write_atomic(launch.paths.spec_file, encode_spec(spec))
        rollback.push(
            "process",
            lambda: self._teardown.process(launch.held),
        )

    def _named(self, launch: Launch, pid: int, what: str) -> Process:
        started = self._host.start_time_ticks(pid)
        if started is None:
            raise DeadlineError(f"{launch.object_id}: process {pid} ended before {what}")
        return Process(pid, started)

    def _slot(self, launch: Launch) -> AbstractAsyncContextManager[object]:
        return self._slots.slot(
            f"{launch.object_id}: creation",
            Share(f"pod {launch.pod_id}", MAX_OF_POD),
            tenant=launch.tenant,
            waiting="waiting for one of runtime.max_parallel_creates",
        )


def _make_bundle(paths: ObjectPaths, users: PodUserNamespace | None, *, monitored: bool) -> None:
    paths.state_dir.mkdir(mode=0o700, parents=True)
    paths.rootfs_dir.mkdir(mode=0o700)
    # All users of the container need access to its root directory.
    paths.rootfs_dir.chmod(0o755)
    if users is not None:
        # The mapped root is an ordinary user on the node. Its group, and no other, may reach the root file system.
        os.chown(paths.state_dir, -1, users.root[1])
        paths.state_dir.chmod(0o710)
    directories = [paths.upper_dir, paths.work_dir]
    if monitored:
        directories += [paths.persist_dir, paths.exec_dir]
    for directory in directories:
        directory.mkdir(mode=0o700)
    paths.upper_dir.chmod(0o755)
    if users is not None:
        os.chown(paths.upper_dir, *users.root)
