"""Recovers the objects that the former daemon left, after a start.

Rules:
- Objects whose creation was acknowledged are kept. Unfinished creations are undone, by the same steps as in a running
  daemon (`teardown`).
- First every object is read from files and /proc, which cannot hang, so that lists are complete. Work that may hang (an
  undo, a call of the runtime, waiting for a monitor's report) is `unfinished` work, for which the server's readiness
  waits only briefly.
- The outcome of each object is logged and counted. A last log line has the totals.
- A process counts only if its start time is the recorded one, since pids are reused.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import for_each, until_done
from cri_shim.errors import CorruptStateError, CriShimError
from cri_shim.ids import is_id
from cri_shim.oci.shim.requests import TaskPlan
from cri_shim.oci.shim.runtime import ShimRuntime
from cri_shim.sandbox.exec.leftovers import LeftoverExecs
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.recovery.take_over import plan_of, take_over
from cri_shim.sandbox.store.model import ContainerState, SandboxState
from cri_shim.sandbox.store.processes import own_kernel_runtime, running

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import Runtimes
    from cri_shim.operations import Operations
    from cri_shim.paths import ObjectPaths, Paths
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.creation import Creation
    from cri_shim.sandbox.exit_handling import ExitHandling
    from cri_shim.sandbox.exits import ExitWatch
    from cri_shim.sandbox.pods import Pods
    from cri_shim.sandbox.recovery.orphans import Orphans
    from cri_shim.sandbox.recovery.unfinished import Unfinished
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.store.store import Container, Sandbox, Store
    from cri_shim.sandbox.teardown import Teardown

log = structlog.get_logger()
REBOOTED_AT_ONCE = 2
"""Pods from before a reboot that are stopped in parallel. The value is low, since new pods start at the same time."""
EXIT_FILE_S = 2.0
"""How long recovery waits for a monitor's exit file. A later one is handled by the exit watch."""
UNFINISHED = "the daemon ended during the creation"
UNKNOWN_EXIT_CODE = 255
"""The exit code that CRI clients see if the real one is lost."""


class Recovery:
    """Recovers every object on disk: keeps it, undoes its creation, or sets it aside."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        sandboxes: Store[Sandbox],
        containers: Store[Container],
        pods: Pods,
        container_service: Containers,
        creation: Creation,
        exit_handling: ExitHandling,
        cgroup_paths: CgroupPaths,
        orphans: Orphans,
        unfinished: Unfinished,
        runtimes: Callable[[], Runtimes],
        cgroups: Cgroups,
        teardown: Teardown,
        exits: ExitWatch,
        background: Background,
        operations: Operations,
        boot_id: str,
    ) -> None:
        self._host = host
        self._paths = paths
        self._sandboxes = sandboxes
        self._containers = containers
        self._pods = pods
        self._container_service = container_service
        self._creation = creation
        self._exit_handling = exit_handling
        self._cgroup_paths = cgroup_paths
        self._orphans = orphans
        self._runtimes = runtimes
        self._cgroups = cgroups
        self._teardown = teardown
        self._exits = exits
        self._operations = operations
        self._background = background
        self._boot_id = boot_id
        self._unfinished = unfinished
        self._rebooted: list[str] = []

    async def run(self) -> None:
        """Load and recover all objects. Work that takes long continues in the background.

        When it returns, every object is in memory, and the server may become ready.
        """
        started = time.monotonic()
        damaged = {*self._load(self._sandboxes), *self._load(self._containers)}
        for sandbox in self._sandboxes:
            await self._guard("sandbox", sandbox.id, self._take_sandbox(sandbox))
        for container in self._containers:
            await self._guard("container", container.id, self._take_container(container))
        for paths in self._without_record():
            if paths.state_dir.name not in damaged:
                self._unfinished.add(
                    "orphan", paths.state_dir.name, partial(self._remove_orphan, paths)
                )
        late = await self._unfinished.settled()
        if self._rebooted:
            self._background.start("pods of before the reboot", self._leave_networks())
        log.info(
            "recovered",
            sandboxes=len(self._sandboxes),
            containers=len(self._containers),
            outcomes=dict(sorted(self._unfinished.outcomes.items())),
            unfinished=late,
            seconds=round(time.monotonic() - started, 3),
        )

    def _load(self, store: Store[Sandbox] | Store[Container]) -> list[str]:
        """Load the records. Objects with damaged records are set aside, and their IDs returned."""
        found: list[Sandbox | Container] = []
        damaged = []
        paths_of = self._paths.sandbox if store is self._sandboxes else self._paths.container
        for object_id, item in store.load():
            if isinstance(item, CorruptStateError):
                log.error("damaged object set aside", id=object_id, error=str(item))
                paths = paths_of(object_id)
                self._unfinished.add(store.kind, object_id, partial(self._set_aside, paths))
                damaged.append(object_id)
            else:
                found.append(item)
        for item in sorted(found, key=lambda o: o.record.created_at_ns):
            store.adopt(item)  # type: ignore[arg-type]
        return damaged

    async def _guard(self, kind: str, object_id: str, work: Coroutine[object, object, str]) -> None:
        """Recover one object. An empty outcome means that unfinished work will count the object."""
        try:
            with self._operations.begin("recovery", object_id):
                outcome = await work
        except Exception as error:  # noqa: BLE001 - one broken object must not stop the rest
            self._unfinished.failed(kind, object_id, error)
        else:
            if outcome:
                self._unfinished.count(kind, object_id, outcome)

    # --- sandboxes -----------------------------------------------------------------------------------------------

    async def _take_sandbox(self, sandbox: Sandbox) -> str:
        status = sandbox.status
        if sandbox.state is SandboxState.CREATING:
            log.info("undoing an unfinished creation", sandbox_id=sandbox.id)
            self._unfinished.add(
                "sandbox",
                sandbox.id,
                lambda: self._undo_sandbox(sandbox),
                overdue=partial(_show_unfinished, sandbox),
            )
            return ""
        if sandbox.state is SandboxState.NOT_READY:
            return "kept"
        if sandbox.record.boot_id != self._boot_id:
            self._sandboxes.update(sandbox, status.stopped(time.time_ns(), "the node was rebooted"))
            self._rebooted.append(sandbox.id)
            return "rebooted"
        if status.process is None or not running(self._host, status.process):
            self._pods.on_exit(sandbox)
            return "ended"
        self._pods.watch(sandbox, status.process, status.monitor)
        plan = TaskPlan(sandbox.id, sandbox.id, self._paths.sandbox(sandbox.id).bundle_dir)
        self._adopt(plan, sandbox.record.handler)
        return "running"

    async def _undo_sandbox(self, sandbox: Sandbox) -> str:
        """Undo a creation whose caller never got an answer."""
        try:
            await self._pods.undo(sandbox)
        except Exception:
            if self._sandboxes.get(sandbox.id) is not None:
                self._pods.give_up_creating(
                    sandbox, f"{UNFINISHED}, and its undo failed; see the daemon's log"
                )
            raise
        return "undone"

    async def _leave_networks(self) -> None:
        """Stop the sandboxes that the reboot ended: only CNI DEL releases their addresses."""

        async def stop(sandbox_id: str) -> None:
            try:
                await self._pods.stop_pod_sandbox(sandbox_id)
            except (CriShimError, OSError) as error:
                # The kubelet will call StopPodSandbox as well, and gets the error then.
                log.warning(
                    "cannot stop a sandbox of before the reboot",
                    sandbox_id=sandbox_id,
                    error=str(error),
                )

        await for_each(self._rebooted, stop, at_once=REBOOTED_AT_ONCE)

    # --- containers ----------------------------------------------------------------------------------------------

    async def _take_container(self, container: Container) -> str:
        status = container.status
        if container.state is ContainerState.CREATING:
            log.info("undoing an unfinished creation", container_id=container.id)
            self._unfinished.add(
                "container",
                container.id,
                lambda: self._undo_container(container, "undone"),
                overdue=lambda why: self._creation.show_given_up(container, f"{UNFINISHED}: {why}"),
            )
            return ""
        if self._sandboxes.get(container.sandbox_id) is None:
            log.warning("removing a container without a sandbox", container_id=container.id)
            self._unfinished.add(
                "container", container.id, lambda: self._undo_container(container, "orphaned")
            )
            return ""
        if container.state is ContainerState.EXITED:
            container.ended.set()
            self._exit_handling.tear_down_exited(container)
            return "kept"
        if status.start_fault:
            return "kept"  # it never had a process
        if container.record.boot_id != self._boot_id:
            exit_ = self._exits.read(container.id)
            await self._exit_handling.note_exit(
                container,
                exit_ or Exit(UNKNOWN_EXIT_CODE, 0),
                reason=None if exit_ else "Unknown",
                log_first=False,
            )
            return "rebooted"
        if (
            status.process is None
            or status.monitor is None
            or not running(self._host, status.process)
        ):
            return await self._take_ended(container)
        # Watch first, before anything that may fail: an exit that is missed is never reported later.
        self._exits.watch(container.id, status.process, status.monitor)
        self._adopt(plan_of(container, self._paths), container.record.handler)
        execs = LeftoverExecs.of(
            self._host,
            container,
            self._paths,
            self._cgroups.pids(self._cgroup_paths.directory_of(container)),
            own_kernel_runtime(lambda name: self._runtimes().get(name), container.record.handler),
        )
        if not execs and container.state is not ContainerState.CREATED:
            return "running"
        self._unfinished.add(
            "container", container.id, lambda: self._finish_running(container, execs)
        )
        return ""

    async def _undo_container(self, container: Container, outcome: str) -> str:
        unfinished = container.state is ContainerState.CREATING
        try:
            await self._container_service.undo(container)
        except Exception:
            if unfinished and self._containers.get(container.id) is not None:
                self._creation.give_up(container, f"{UNFINISHED}, and its undo failed")
            raise
        return outcome

    async def _take_ended(self, container: Container) -> str:
        status = container.status
        exit_ = self._exits.read(container.id)
        if exit_ is not None:
            await self._exit_handling.note_exit(container, exit_, log_first=False)
        elif status.process and status.monitor and running(self._host, status.monitor):
            # The monitor runs, so it will write the exit file.
            self._exits.watch(container.id, status.process, status.monitor)
            self._adopt(plan_of(container, self._paths), container.record.handler)
            self._unfinished.add("container", container.id, lambda: self._await_exit(container))
            return ""
        else:
            # In the background: the remaining processes are killed first, which may take long.
            self._exit_handling.on_exit(container, Exit(None, 0))
        return "ended"

    def _adopt(self, plan: TaskPlan, handler: str) -> None:
        """Of what a shim runs somebody has to wait for the end, and to hold the streams."""
        runtime = own_kernel_runtime(lambda name: self._runtimes().get(name), handler)
        if isinstance(runtime, ShimRuntime):
            self._background.keep(f"taking over {plan.object_id}", take_over(plan, runtime))

    async def _await_exit(self, container: Container) -> str:
        """Wait briefly for the exit file, so that clients see the exit right after the start."""
        try:
            async with asyncio.timeout(EXIT_FILE_S):
                await container.ended.wait()
        except TimeoutError:
            pass  # the exit watch reports it later
        return "ended"

    async def _finish_running(self, container: Container, execs: LeftoverExecs) -> str:
        await execs.end()
        if container.state is ContainerState.CREATED:
            # Retry until the runtime answers: a container that was started must not be shown as created.
            await until_done(
                f"asking the runtime about container {container.id}",
                lambda: self._note_unsaved_start(container),
            )
        return "running"

    async def _note_unsaved_start(self, container: Container) -> None:
        """Record a start that took effect, if the daemon ended before it recorded it."""
        if container.state is not ContainerState.CREATED:
            return
        runtime = self._runtimes().get(container.record.handler)
        state = await runtime.state(container.id)
        runs = state is not None and state.status == "running"
        if runs and container.state is ContainerState.CREATED:  # it may have exited meanwhile
            self._containers.update(container, container.status.started(time.time_ns()))

    # --- orphans and damaged objects ------------------------------------------------------------------------------

    def _without_record(self) -> Iterator[ObjectPaths]:
        for directory, paths_of in (
            (self._paths.state / "sandboxes", self._paths.sandbox),
            (self._paths.state / "containers", self._paths.container),
        ):
            for object_id in _ids_in(directory):
                if not self._sandboxes.get(object_id) and not self._containers.get(object_id):
                    yield paths_of(object_id)

    async def _remove_orphan(self, paths: ObjectPaths) -> str:
        object_id = paths.state_dir.name
        log.warning("removing the remains of an object without a record", id=object_id)
        await self._orphans.tear_down(object_id, paths)
        await self._teardown.state_files(paths)
        return "removed"

    async def _set_aside(self, paths: ObjectPaths) -> str:
        """Remove all but the files of the root directory, which are moved to `damaged` for inspection."""
        object_id = paths.root_dir.name
        await self._orphans.tear_down(object_id, paths)
        await self._teardown.state_files(paths)
        if not paths.record_file.exists():
            # A removal deletes the record first, so this object was being removed.
            await self._teardown.root_files(paths)
            return "removed"
        damaged = self._paths.damaged_dir
        damaged.mkdir(mode=0o700, exist_ok=True)
        os.rename(paths.root_dir, damaged / f"{object_id}-{time.time_ns()}")
        return "damaged"


def _show_unfinished(sandbox: Sandbox, why: str) -> None:
    # In memory only: on disk it is still being created, so that the next daemon undoes it, too.
    sandbox.status = sandbox.status.stopped(time.time_ns(), f"{UNFINISHED}: {why}")


def _ids_in(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir() if is_id(entry.name)]
    except FileNotFoundError:
        return []
