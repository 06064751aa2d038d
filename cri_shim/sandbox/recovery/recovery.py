"""After a start: what the former daemon left, object by object.

Rules:
- What was acknowledged is there again; what was not is undone, by the same steps as everywhere (`teardown`).
- First every object is taken over by what memory, files and /proc say, which can't hang: whoever lists then sees all of
  them. What may hang (an undoing, a runtime's answer, a monitor that is about to report) is `unfinished` work, which
  the server's readiness waits for a moment and no longer.
- What became of each is logged and counted; the log's last line has the sums.
- Nothing here trusts a bare pid, nor the clock: processes count only with the start time that was recorded.
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
from cri_shim.sandbox.exec.leftovers import LeftoverExecs
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.recovery.unfinished import Unfinished
from cri_shim.sandbox.store.model import ContainerState, SandboxState
from cri_shim.sandbox.store.processes import running

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
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.store.store import Container, Sandbox, Store
    from cri_shim.sandbox.teardown import Teardown

log = structlog.get_logger()
REBOOTED_AT_ONCE = 2
"""Pods of before a reboot whose networks are given back side by side: the new ones need the machine more."""
EXIT_FILE_S = 2.0
"""How long recovery waits for a monitor that is about to report; a slower one reports to the exit watch."""
UNFINISHED = "the daemon ended while it was made"
UNKNOWN_EXIT_CODE = 255
"""What CRI clients are told of a container whose end nobody saw."""


class Recovery:
    """Takes over, undoes or sets aside every object on disk."""

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
        self._unfinished = Unfinished(background, operations)
        self._rebooted: list[str] = []

    async def run(self) -> None:
        """Bring memory, files and kernel together; afterwards the server may become ready.

        Every object is in memory then. What takes longer goes on in the background.
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
        """Take in what can be read; the IDs of what can't, which is set aside."""
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
        """Take one object over. What has still to be done for it counts when that is done."""
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
        self._pods.watch(sandbox, status.process)
        return "running"

    async def _undo_sandbox(self, sandbox: Sandbox) -> str:
        """A creation that nobody was told of."""
        try:
            await self._pods.undo(sandbox)
        except Exception:
            if self._sandboxes.get(sandbox.id) is not None:
                self._pods.give_up_creating(
                    sandbox, f"{UNFINISHED}, and the undoing failed; see the daemon's log"
                )
            raise
        return "undone"

    async def _leave_networks(self) -> None:
        """Stop what the reboot has ended: its addresses are needed, and a CNI DEL gives them back."""

        async def stop(sandbox_id: str) -> None:
            try:
                await self._pods.stop_pod_sandbox(sandbox_id)
            except (CriShimError, OSError) as error:
                # The kubelet stops it as well, and is told.
                log.warning("not yet stopped", sandbox_id=sandbox_id, error=str(error))

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
            log.warning("removing a container without its sandbox", container_id=container.id)
            self._unfinished.add(
                "container", container.id, lambda: self._undo_container(container, "orphaned")
            )
            return ""
        if container.state is ContainerState.EXITED:
            container.ended.set()
            self._exit_handling.tear_down_exited(container)
            return "kept"
        if status.start_fault:
            return "kept"  # it has no process to look for
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
        # Watched before anything that may fail: an end that nobody notices can't be made good later.
        self._exits.watch(container.id, status.process, status.monitor)
        execs = LeftoverExecs.of(
            self._host,
            container,
            self._paths,
            self._cgroups.pids(self._cgroup_paths.directory_of(container)),
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
                self._creation.give_up(container, f"{UNFINISHED}, and the undoing failed")
            raise
        return outcome

    async def _take_ended(self, container: Container) -> str:
        status = container.status
        exit_ = self._exits.read(container.id)
        if exit_ is not None:
            await self._exit_handling.note_exit(container, exit_, log_first=False)
        elif status.process and status.monitor and running(self._host, status.monitor):
            # It may be about to report; a slow monitor is no dead one.
            self._exits.watch(container.id, status.process, status.monitor)
            self._unfinished.add("container", container.id, lambda: self._await_exit(container))
            return ""
        else:
            # On its own: it has to be killed first, which may take longer than this object's time.
            self._exit_handling.on_exit(container, Exit(None, 0))
        return "ended"

    async def _await_exit(self, container: Container) -> str:
        """Whoever looks right after the start should see the end, not what was before it."""
        try:
            async with asyncio.timeout(EXIT_FILE_S):
                await container.ended.wait()
        except TimeoutError:
            pass  # the exit watch goes on
        return "ended"

    async def _finish_running(self, container: Container, execs: LeftoverExecs) -> str:
        await execs.end()
        if container.state is ContainerState.CREATED:
            # Tried again for as long as it may have been started: it must not be started a second time elsewhere.
            await until_done(
                f"asking the runtime about container {container.id}",
                lambda: self._note_unsaved_start(container),
            )
        return "running"

    async def _note_unsaved_start(self, container: Container) -> None:
        """A start that took effect but was not written down before the daemon ended."""
        if container.state is not ContainerState.CREATED:
            return
        runtime = self._runtimes().get(container.record.handler)
        state = await runtime.state(container.id)
        runs = state is not None and state.status == "running"
        if runs and container.state is ContainerState.CREATED:  # it may have ended meanwhile
            self._containers.update(container, container.status.started(time.time_ns()))

    # --- what has no readable record -----------------------------------------------------------------------------

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
        log.warning("removing what is left of an object without a record", id=object_id)
        await self._orphans.tear_down(object_id, paths)
        await self._teardown.state_files(paths)
        return "removed"

    async def _set_aside(self, paths: ObjectPaths) -> str:
        """Take away what the ID alone names; the damaged files stay for whoever wants to look."""
        object_id = paths.root_dir.name
        await self._orphans.tear_down(object_id, paths)
        await self._teardown.state_files(paths)
        if not paths.record_file.exists():
            # Removal deletes the record first: this one was being removed.
            await self._teardown.root_files(paths)
            return "removed"
        damaged = self._paths.damaged_dir
        damaged.mkdir(mode=0o700, exist_ok=True)
        os.rename(paths.root_dir, damaged / f"{object_id}-{time.time_ns()}")
        return "damaged"


def _show_unfinished(sandbox: Sandbox, why: str) -> None:
    # In memory alone: its files say that it is being made, and the next daemon would undo it as well.
    sandbox.status = sandbox.status.stopped(time.time_ns(), f"{UNFINISHED}: {why}")


def _ids_in(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir() if is_id(entry.name)]
    except FileNotFoundError:
        return []
