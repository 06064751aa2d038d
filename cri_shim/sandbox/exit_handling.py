"""Stops containers, notes their exits, and tears down what an exited container held.

Rules:
- An exit is shown as soon as it is known. The runtime's state and the cgroup are removed right after it, so that an
  exited container takes only disk space.
- Noting an exit and tearing down are retried until they succeed.
- Concurrent stops of a container share one, with the earliest deadline. No lock is held during a grace period.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import msgspec
import structlog

from cri_shim import metrics
from cri_shim.background import settled, until_done
from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.kernel_call import in_time_for
from cri_shim.operations import step
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.log_end import close_log
from cri_shim.sandbox.store.model import ContainerState, Process
from cri_shim.sandbox.store.processes import Held, own_kernel_runtime, running
from cri_shim.sandbox.vm_processes import asks_to_kill, signal_inside
from cri_shim.single_flight import SingleFlight
from cri_shim.slots import Share, Slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.background import Background
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import Runtime
    from cri_shim.operations import Operations
    from cri_shim.paths import Paths
    from cri_shim.sandbox.exits import ExitWatch
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.store.store import Container, Sandbox, Store
    from cri_shim.sandbox.teardown import Teardown

log = structlog.get_logger()
KILL_TIMEOUT_S = 10.0
"""Time to end after SIGKILL. A process that exceeds it hangs in the kernel, and the caller gets an error."""
TEARDOWNS_AT_ONCE = 8
"""Teardowns at a time. After a start a thousand containers may have ended. Stop and Remove do not wait for a slot."""
TEARDOWNS_OF_POD = 2
"""Teardowns at a time for one pod, since a process that hangs in the kernel blocks a teardown until its timeout."""
KILLED_ALONE_S = 0.1
"""Time for a container to end with its first process, as nearly all do, before its whole cgroup is killed."""
MONITOR_FAREWELL_S = 0.5
"""Time for a monitor to end after it wrote the exit file, before it is killed."""
LOG_PATIENCE_S = 0.5
"""Longest delay of showing an exit, for closing the last line of the log."""
KILLED = 128 + signal.SIGKILL
NOT_STARTED = 128
"""The exit code of a container whose start failed, with the reason StartError, as in containerd."""


@dataclass(slots=True, eq=False)
class _Stop:
    """A stop that concurrent callers share."""

    deadline: float
    """The end of the grace period, on the loop's clock."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the container ended or the deadline moved."""
    killing: bool = False
    """Whether the grace period is over. The deadline is then that of SIGKILL, which callers cannot shorten."""

    def shorten(self, deadline: float) -> None:
        if not self.killing and deadline < self.deadline:
            self.deadline = deadline
            self.changed.set()


class ExitHandling:
    """Stops containers and handles their exits."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        store: Store[Container],
        cgroups: Cgroups,
        teardown: Teardown,
        exits: ExitWatch,
        background: Background,
        operations: Operations,
        cgroup_paths: CgroupPaths,
        sandboxes: Store[Sandbox],
        runtime_of: Callable[[str], Runtime],
    ) -> None:
        self._host = host
        self._paths = paths
        self._store = store
        self._cgroups = cgroups
        self._teardown = teardown
        self._exits = exits
        self._background = background
        self._operations = operations
        self._cgroup_paths = cgroup_paths
        self._sandboxes = sandboxes
        self._runtime_of = runtime_of
        self._closed_logs: WeakSet[Container] = WeakSet()
        """Containers whose log is closed already, so that the teardown need not do it."""
        self._stopping: SingleFlight[None] = SingleFlight("StopContainer", operations)
        self._stops: dict[str, _Stop] = {}
        self._slots = Slots(TEARDOWNS_AT_ONCE)

    # --- exits ---------------------------------------------------------------------------------------------------

    def on_exit(self, container: Container, exit_: Exit) -> None:
        """Note an exit in the background. Called when the container's process or its monitor ended."""
        self._background.start(f"exit of {container.id}", self.note_exit(container, exit_))

    async def note_exit(
        self,
        container: Container,
        exit_: Exit,
        *,
        reason: str | None = None,
        log_first: bool = True,
    ) -> None:
        """Show an exit, and begin to tear down the container. `reason` overrides the one derived from the exit.

        Without `log_first` the log's last line is closed at the teardown: for recovery, where many have ended.
        """
        with self._operations.begin("noting an exit", container.id):
            if log_first:
                await self._show_log_closed(container)
            await self._note_exit(container, exit_, reason)
        self.tear_down_exited(container)

    async def _note_exit(self, container: Container, exit_: Exit, reason: str | None) -> None:
        code, at_ns, message = exit_.code, exit_.at_ns or time.time_ns(), ""
        # Clients that wait for the exit need not wait for the write: after a crash, the exit file tells the same.
        written_later = code is not None and reason is None
        if code is None:
            # The monitor died, and the exit code is lost. A container without a monitor has no log and no one to
            # report its exit, so it must not run on.
            await until_done(
                f"killing container {container.id}",
                lambda: self._teardown.kill_processes(self._held(container)),
            )
            code, reason, message = KILLED, "MonitorDied", "its monitor died, so it was killed"
        async with container.lock:  # a start under way completes first
            reason = reason or self._explain(container, code)
            self.finish(container, code, at_ns, reason, message, written_later=written_later)

    async def _show_log_closed(self, container: Container) -> None:
        """Close the log's last line before the exit is shown, since clients then read the log. Wait only briefly."""
        if container.record.log_path:
            what = f"closing the log of {container.id}"
            closing = self._background.start(what, self._close_log(container))
            await settled(closing, LOG_PATIENCE_S)

    async def _close_log(self, container: Container) -> None:
        if not container.record.log_path:
            return
        log_file, owner = Path(container.record.log_path), f"pod {container.sandbox_id}"
        try:
            directory = self._sandboxes.find(container.sandbox_id).config.log_directory
            await in_time_for(owner, "closing the log", close_log, directory, log_file)
        except (CriShimError, OSError) as error:
            log.warning(
                "cannot close the last line of the log",
                container_id=container.id,
                error=str(error),
            )
        else:
            self._closed_logs.add(container)

    def _explain(self, container: Container, code: int) -> str:
        # OOMKilled if any process of the container was OOM-killed, whatever its exit code: its user should know.
        if self._ran_out_of_memory(container):
            return "OOMKilled"
        return "Error" if code else "Completed"

    def _ran_out_of_memory(self, container: Container) -> bool:
        kills = self._cgroups.oom_kills(self._cgroup_paths.directory_of(container))
        sandbox = self._sandboxes.get(container.sandbox_id)
        runtime = own_kernel_runtime(self._runtime_of, container.record.handler)
        if runtime is not None and runtime.settings.has_stand_ins and sandbox is not None:
            # The containers of a gVisor sandbox are in the cgroup of its pause container, and end with it. OOM kills
            # by the kernel of a guest are not reported.
            kills = self._cgroups.oom_kills(self._cgroup_paths.directory_of(sandbox))
        return self._paths.container(container.id).says_oom() if kills is None else kills > 0

    def finish(
        self,
        container: Container,
        code: int,
        at_ns: int,
        reason: str,
        message: str,
        *,
        written_later: bool = False,
    ) -> None:
        """Show the container as exited. A later exit does not replace an earlier one.

        With `written_later` the teardown writes the status before it removes anything. This is for an exit that can be
        read from the exit file until then.
        """
        if container.state is ContainerState.EXITED:
            return
        self._exits.forget(container.id)
        status = container.status.exited(at_ns, code, reason=reason, message=message)
        (self._store.show if written_later else self._store.update)(container, status)
        container.ended.set()
        if (stop := self._stops.get(container.id)) is not None:
            stop.changed.set()
        metrics.CONTAINER_EXITS.labels(reason=reason).inc()
        if reason == "OOMKilled":
            metrics.CONTAINER_OOMS.inc()
        log.info("container exited", container_id=container.id, exit_code=code, reason=reason)

    def finish_unstarted(self, container: Container, message: str) -> None:
        """Show the container as exited with a failed start, and begin to tear it down."""
        self.finish(container, NOT_STARTED, time.time_ns(), "StartError", message)
        self.tear_down_exited(container)

    def tear_down_exited(self, container: Container) -> None:
        """Run `tear_down_process` in the background, until it succeeds."""
        if container.status.torn_down:
            return
        what = f"tearing down container {container.id}"
        self._background.start(what, self._tear_down_exited(what, container))

    async def _tear_down_exited(self, what: str, container: Container) -> None:
        with self._operations.begin("tearing down what ended", container.id):
            await until_done(what, lambda: self._tear_down_in_slot(container))

    async def _tear_down_in_slot(self, container: Container) -> None:
        share = Share(f"pod {container.sandbox_id}", TEARDOWNS_OF_POD)
        async with self._slots.slot(
            f"tearing down container {container.id}",
            share,
            tenant=container.record.tenant,
            waiting="waiting for other teardowns",
        ):
            if container not in self._closed_logs:
                await self._close_log(container)
            await self.tear_down_process(container)

    async def tear_down_process(self, container: Container) -> None:
        """Kill remaining processes of the container, and remove its runtime state and cgroup."""
        async with container.lock:
            if container.status.torn_down:
                return
            await self._let_monitor_end(container)
            if container.unsaved:
                self._store.save(container)  # see `finish`
            await self._teardown.process(self._held(container))
            # Only in memory: a daemon that does not know of the teardown repeats it. This saves a write, since most
            # containers are removed soon.
            self._store.show(container, msgspec.structs.replace(container.status, torn_down=True))

    def _held(self, container: Container) -> Held:
        record, paths = container.record, self._paths.container(container.id)
        cgroup_dir = self._cgroup_paths.directory_of(container)
        return Held(container.id, record.sandbox_id, record.handler, cgroup_dir, paths)

    async def _let_monitor_end(self, container: Container) -> None:
        """Wait for a monitor that is about to end by itself, which is cheaper than killing it."""
        monitor = container.status.monitor
        runtime = own_kernel_runtime(self._runtime_of, container.record.handler)
        alone = runtime is None or not runtime.settings.shares_monitor
        if monitor and alone and container.status.started_at_ns and container.ended.is_set():
            with step("waiting for the monitor's end"):
                await self._host.ends_of([(monitor.pid, monitor.start_ticks)], MONITOR_FAREWELL_S)

    # --- stops ---------------------------------------------------------------------------------------------------

    async def stop(self, container: Container, timeout_s: float) -> None:
        """Send the stop signal, wait up to `timeout_s` seconds, then kill. Returns once the container has exited.

        Raises DeadlineError if SIGKILL does not end it.
        """
        if container.state is ContainerState.EXITED:
            return
        if container.status.start_fault:  # it has no process, and never will
            self.finish_unstarted(container, container.status.start_fault)
            return
        deadline = asyncio.get_running_loop().time() + max(timeout_s, 0)
        stop = self._stops.get(container.id)
        if stop is None:
            stop = self._stops[container.id] = _Stop(deadline)
        else:
            stop.shorten(deadline)
        shared = stop
        await self._stopping.run(container.id, b"", lambda: self._stop(container, shared))

    async def _stop(self, container: Container, stop: _Stop) -> None:
        process = container.status.process
        runtime = own_kernel_runtime(self._runtime_of, container.record.handler)
        try:
            if process is not None and stop.deadline > asyncio.get_running_loop().time():
                self._send_stop_signal(container, process, runtime)
                with step("waiting for the exit"):
                    await _wait_for_end(container, stop)
            if not container.ended.is_set():
                stop.killing = True
                if runtime is None:
                    await self._kill(container, stop)
                else:
                    await self._kill_in_sandbox(container, runtime, stop)
            if not container.ended.is_set() and not running(self._host, process):
                # The exit was missed. The container must be removable all the same.
                exit_ = self._exits.read(container.id) or Exit(None, 0)
                await self.note_exit(container, exit_)
            if not container.ended.is_set():
                raise DeadlineError(
                    f"container {container.id}: process {process.pid if process else '?'} did not end within "
                    f"{KILL_TIMEOUT_S:g} s of SIGKILL: it hangs in the kernel (see its /proc/PID/stack)"
                )
        finally:
            self._stops.pop(container.id, None)

    def _send_stop_signal(
        self, container: Container, process: Process, runtime: Runtime | None
    ) -> None:
        """Send the stop signal, in a pod with its own kernel through the runtime.

        SIGTERM goes to the process that represents the container on the node, which forwards it: the runtime would kill
        after it. That process may act on other signals itself, so the runtime delivers those, in the background.
        """
        number = container.record.stop_signal
        direct = not container.status.started_at_ns or number == signal.SIGTERM
        if runtime is None or (runtime.settings.has_stand_ins and direct):
            self._host.kill_process(process.pid, process.start_ticks, number)
        else:
            what = f"signal for container {container.id}"
            self._background.start(what, signal_inside(runtime, container.id, number))

    async def _kill(self, container: Container, stop: _Stop) -> None:
        await self._kill_first_process(container, stop)
        # In a shared PID namespace other processes survive the first one. For an empty cgroup this is cheap.
        with step("killing the cgroup"):
            await self._cgroups.kill_all(
                self._cgroup_paths.directory_of(container), timeout_s=KILL_TIMEOUT_S
            )
        await _wait_until_killed(container, stop)

    async def _kill_in_sandbox(self, container: Container, runtime: Runtime, stop: _Stop) -> None:
        """Kill through the runtime. If the container does not end, kill its sandbox, then its process on the node."""
        with step("killing through the runtime"):
            answered = await asks_to_kill(runtime, container.id)
        process = container.status.process
        unstarted = process is not None and not container.status.started_at_ns
        if process is not None and unstarted and runtime.settings.has_stand_ins:
            # The container was not started, so nothing runs inside: kill the process that waits for the start.
            self._host.kill_process(process.pid, process.start_ticks)
        if answered:
            await _wait_until_killed(container, stop)
        if container.ended.is_set():
            return
        await self._teardown.end_sandbox(self._held(container))
        if process is not None:
            self._host.kill_process(process.pid, process.start_ticks)
        await _wait_until_killed(container, stop)

    async def _kill_first_process(self, container: Container, stop: _Stop) -> None:
        """Kill the first process. If it is PID 1 of a PID namespace, the kernel kills all others with it."""
        process = container.status.process
        if process is not None and self._host.kill_process(process.pid, process.start_ticks):
            stop.deadline = asyncio.get_running_loop().time() + KILLED_ALONE_S
            with step("waiting for the exit"):
                await _wait_for_end(container, stop)

    async def close(self, grace_s: float) -> None:
        """Wait `grace_s` seconds for stops under way, then cancel them."""
        await self._stopping.close(grace_s)


async def _wait_until_killed(container: Container, stop: _Stop) -> None:
    stop.deadline = asyncio.get_running_loop().time() + KILL_TIMEOUT_S
    with step("waiting for the exit"):
        await _wait_for_end(container, stop)


async def _wait_for_end(container: Container, stop: _Stop) -> None:
    """Wait until the container has ended, or until the stop's deadline, which may move, has passed."""
    loop = asyncio.get_running_loop()
    while not container.ended.is_set() and (left := stop.deadline - loop.time()) > 0:
        stop.changed.clear()
        try:
            async with asyncio.timeout(left):
                await stop.changed.wait()
        except TimeoutError:
            return
