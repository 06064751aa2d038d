"""After a start: what the former daemon left, object by object.

Rules:
- What was acknowledged is there again; what was not is undone, by the same steps as everywhere (`release`).
- Each object has its own deadline, and several are looked at at once: one that is broken or hangs never stops the rest.
- What became of each is logged and counted; the log's last line has the sums.
- Nothing here trusts a bare pid, nor the clock: processes count only with the start time that was recorded, and
  whether one is an exec of ours is told by its parent.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import structlog

from cri_shim import metrics
from cri_shim.errors import CorruptStateError, CriShimError
from cri_shim.host.procstat import pid_namespace_depth, process_entry
from cri_shim.host.proctree import kill_family
from cri_shim.ids import is_id
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.model import ContainerState, SandboxState
from cri_shim.sandbox.release import running

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.procstat import ProcessEntry
    from cri_shim.oci.runtime import Runtimes
    from cri_shim.operations import Operations
    from cri_shim.paths import ObjectPaths, Paths
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.debris import Debris
    from cri_shim.sandbox.exits import ExitWatch
    from cri_shim.sandbox.pods import Pods
    from cri_shim.sandbox.release import Release
    from cri_shim.sandbox.store import Container, Sandbox, Store

log = structlog.get_logger()
T = TypeVar("T")
OBJECT_TIMEOUT_S = 30.0
AT_ONCE = 8
"""Objects looked at side by side: what most wait for is a runtime's answer, and one that hangs must not hold up all."""
REBOOTED_AT_ONCE = 2
"""Pods of before a reboot whose networks are given back side by side: the new ones need the machine more."""
EXIT_FILE_S = 2.0
"""How long recovery waits for a monitor that is about to report; a slower one reports to the exit watch."""
UNFINISHED = "the daemon ended while it was made, and the undoing failed"
UNKNOWN_EXIT_CODE = 255
"""What CRI clients are told of a container whose end nobody saw."""


class Recovery:
    """Takes over, undoes or sets aside every object on disk."""

    def __init__(
        self,
        *,
        paths: Paths,
        sandboxes: Store[Sandbox],
        containers: Store[Container],
        pods: Pods,
        container_cases: Containers,
        debris: Debris,
        runtimes: Callable[[], Runtimes],
        cgroups: Cgroups,
        release: Release,
        exits: ExitWatch,
        background: Background,
        operations: Operations,
        boot_id: str,
    ) -> None:
        self._paths = paths
        self._sandboxes = sandboxes
        self._containers = containers
        self._pods = pods
        self._container_cases = container_cases
        self._debris = debris
        self._runtimes = runtimes
        self._cgroups = cgroups
        self._release = release
        self._exits = exits
        self._operations = operations
        self._background = background
        self._boot_id = boot_id
        self._outcomes: Counter[str] = Counter()
        self._rebooted: list[str] = []

    async def run(self) -> None:
        """Bring memory, files and kernel together; afterwards the server may become ready."""
        started = time.monotonic()
        await self._load(self._sandboxes, self._paths.sandbox)
        await self._load(self._containers, self._paths.container)
        await _each(self._sandboxes, self._take_sandbox)
        await _each(self._containers, self._take_container)
        await _each(list(self._without_record()), self._take_debris)
        if self._rebooted:
            self._background.start("pods of before the reboot", self._leave_networks())
        log.info(
            "recovered",
            sandboxes=len(self._sandboxes),
            containers=len(self._containers),
            outcomes=dict(sorted(self._outcomes.items())),
            seconds=round(time.monotonic() - started, 3),
        )

    async def _load(self, store: Store[Sandbox] | Store[Container], paths_of: object) -> None:
        found: list[Sandbox | Container] = []
        for object_id, item in store.load():
            if isinstance(item, CorruptStateError):
                log.error("damaged object set aside", id=object_id, error=str(item))
                paths = paths_of(object_id)  # type: ignore[operator]
                await self._guard(store.kind, object_id, self._set_aside(paths))
            else:
                found.append(item)
        for item in sorted(found, key=lambda o: o.record.created_at_ns):
            store.adopt(item)  # type: ignore[arg-type]

    async def _guard(self, kind: str, object_id: str, work: Coroutine[object, object, str]) -> None:
        try:
            with self._operations.begin("recovery", object_id):
                async with asyncio.timeout(OBJECT_TIMEOUT_S):
                    outcome = await work
        except Exception as error:  # noqa: BLE001 - one broken object must not stop the rest
            log.error("not recovered", kind=kind, id=object_id, error=str(error) or repr(error))
            outcome = "failed"
        else:
            level = log.debug if outcome in ("running", "kept") else log.info
            level("recovered object", kind=kind, id=object_id, outcome=outcome)
        self._outcomes[f"{kind} {outcome}"] += 1
        metrics.RECOVERED_OBJECTS.labels(kind=kind, outcome=outcome).inc()

    # --- sandboxes -----------------------------------------------------------------------------------------------

    async def _take_sandbox(self, sandbox: Sandbox) -> None:
        await self._guard("sandbox", sandbox.id, self._recover_sandbox(sandbox))
        if sandbox.state is SandboxState.CREATING and self._sandboxes.get(sandbox.id):
            self._pods.give_up_creating(sandbox, f"{UNFINISHED}; see the daemon's log")

    async def _recover_sandbox(self, sandbox: Sandbox) -> str:
        status = sandbox.status
        if sandbox.state is SandboxState.CREATING:
            return await self._undo_sandbox(sandbox)
        if sandbox.state is SandboxState.NOT_READY:
            return "kept"
        if sandbox.record.boot_id != self._boot_id:
            self._sandboxes.update(sandbox, status.stopped(time.time_ns(), "the node was rebooted"))
            self._rebooted.append(sandbox.id)
            return "rebooted"
        if status.process is None or status.monitor is None or not running(status.process):
            self._pods.on_exit(sandbox, self._exits.read(sandbox.id) or Exit(None, 0))
            return "ended"
        self._pods.watch(sandbox, status.process, status.monitor)
        return "running"

    async def _undo_sandbox(self, sandbox: Sandbox) -> str:
        """A creation that nobody was told of."""
        log.info("undoing an unfinished creation", sandbox_id=sandbox.id)
        await self._pods.release(sandbox)
        await self._release.root_files(self._paths.sandbox(sandbox.id))
        self._sandboxes.forget(sandbox)
        return "undone"

    async def _leave_networks(self) -> None:
        """Stop what the reboot has ended: its addresses are needed, and a CNI DEL gives them back."""

        async def stop(sandbox_id: str) -> None:
            try:
                await self._pods.stop_pod_sandbox(sandbox_id)
            except (CriShimError, OSError) as error:
                # The kubelet stops it as well, and is told.
                log.warning("not yet stopped", sandbox_id=sandbox_id, error=str(error))

        await _each(self._rebooted, stop, at_once=REBOOTED_AT_ONCE)

    # --- containers ----------------------------------------------------------------------------------------------

    async def _take_container(self, container: Container) -> None:
        await self._guard("container", container.id, self._recover_container(container))
        if container.state is ContainerState.CREATING and self._containers.get(container.id):
            self._container_cases.give_up_creating(container, UNFINISHED)

    async def _recover_container(self, container: Container) -> str:
        status = container.status
        if container.state is ContainerState.CREATING:
            log.info("undoing an unfinished creation", container_id=container.id)
            await self._container_cases.destroy(container)
            return "undone"
        if self._sandboxes.get(container.sandbox_id) is None:
            log.warning("removing a container without its sandbox", container_id=container.id)
            await self._container_cases.destroy(container)
            return "orphaned"
        if container.state is ContainerState.EXITED:
            container.ended.set()
            self._container_cases.endings.release_exited(container)
            return "kept"
        if container.record.boot_id != self._boot_id:
            exit_ = self._exits.read(container.id)
            await self._container_cases.endings.note_exit(
                container, exit_ or Exit(UNKNOWN_EXIT_CODE, 0), reason=None if exit_ else "Unknown"
            )
            return "rebooted"
        if status.process is None or status.monitor is None or not running(status.process):
            exit_ = await self._exit_of_ended(container)
            if exit_ is not None:
                await self._container_cases.endings.note_exit(container, exit_)
            elif status.process and status.monitor and running(status.monitor):
                # A slow monitor is no dead one.
                self._exits.watch(container.id, status.process, status.monitor)
            else:
                # On its own: it has to be killed first, which may take longer than this object's time.
                self._container_cases.endings.on_exit(container, Exit(None, 0))
            return "ended"
        # Watched before anything that may fail: an end that nobody notices can't be made good later.
        self._exits.watch(container.id, status.process, status.monitor)
        await self._kill_execs(container)
        if container.state is ContainerState.CREATED:
            await self._note_unsaved_start(container)
        return "running"

    async def _exit_of_ended(self, container: Container) -> Exit | None:
        """The exit file; its monitor may be about to write it."""
        deadline = time.monotonic() + EXIT_FILE_S
        while True:
            monitor_runs = running(container.status.monitor)
            exit_ = self._exits.read(container.id)
            if exit_ is not None or not monitor_runs or time.monotonic() > deadline:
                return exit_
            await asyncio.sleep(0.02)

    async def _note_unsaved_start(self, container: Container) -> None:
        """A start that took effect but was not written down before the daemon ended."""
        runtime = self._runtimes().get(container.record.handler)
        state = await runtime.state(container.id)
        runs = state is not None and state.status == "running"
        if runs and container.state is ContainerState.CREATED:  # it may have ended meanwhile
            self._containers.update(container, container.status.started(time.time_ns()))

    async def _kill_execs(self, container: Container) -> None:
        """Commands of the former daemon have nobody to read them or collect their status."""
        exec_dir = self._paths.container(container.id).exec_dir
        cgroup_pids = self._cgroups.pids(self._container_cases.endings.cgroup_dir(container))
        for file in exec_dir.glob("*.pid"):
            try:
                pid = int(file.read_text())
            except (OSError, ValueError):
                continue
            entry = process_entry(pid) if pid in cgroup_pids else None
            if entry is not None and self._came_from_outside(entry, cgroup_pids, container):
                log.info("killing an exec of the former daemon", container_id=container.id, pid=pid)
                await kill_family(pid, entry.start_ticks, timeout_s=5.0, strays=lambda: cgroup_pids)
        for file in exec_dir.glob("*"):
            (self._paths.console_dir / file.stem).unlink(missing_ok=True)
            file.unlink(missing_ok=True)

    def _came_from_outside(
        self, entry: ProcessEntry, cgroup_pids: Collection[int], container: Container
    ) -> bool:
        """Whether it was brought into the container rather than born there: the number may be another's by now.

        An exec's parent is the daemon, or whoever inherits a dead daemon's children, in our own PID namespace. The
        container's own processes descend from its first one; whoever loses its parent falls to the first process of
        its PID namespace, and in the host's to the monitor.
        """
        known = {p.pid for p in (container.status.process, container.status.monitor) if p}
        return (
            entry.pid not in known
            and entry.parent_pid not in known
            and entry.parent_pid not in cgroup_pids
            and pid_namespace_depth(entry.parent_pid) == 0
        )

    # --- what has no readable record -----------------------------------------------------------------------------

    def _without_record(self) -> Iterator[ObjectPaths]:
        for directory, paths_of in (
            (self._paths.state / "sandboxes", self._paths.sandbox),
            (self._paths.state / "containers", self._paths.container),
        ):
            for object_id in _ids_in(directory):
                if not self._sandboxes.get(object_id) and not self._containers.get(object_id):
                    yield paths_of(object_id)

    async def _take_debris(self, paths: ObjectPaths) -> None:
        await self._guard("debris", paths.state_dir.name, self._remove_debris(paths))

    async def _remove_debris(self, paths: ObjectPaths) -> str:
        object_id = paths.state_dir.name
        log.warning("removing what is left of an object without a record", id=object_id)
        await self._debris.release(object_id, paths)
        await self._release.state_files(paths)
        return "removed"

    async def _set_aside(self, paths: ObjectPaths) -> str:
        """Take away what the ID alone names; the damaged files stay for whoever wants to look."""
        object_id = paths.root_dir.name
        await self._debris.release(object_id, paths)
        await self._release.state_files(paths)
        if not paths.record_file.exists():
            # Removal deletes the record first: this one was being removed.
            await self._release.root_files(paths)
            return "removed"
        damaged = self._paths.damaged_dir
        damaged.mkdir(mode=0o700, exist_ok=True)
        os.rename(paths.root_dir, damaged / f"{object_id}-{time.time_ns()}")
        return "damaged"


def _ids_in(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir() if is_id(entry.name)]
    except FileNotFoundError:
        return []


async def _each(
    items: Iterable[T],
    work: Callable[[T], Coroutine[object, object, None]],
    *,
    at_once: int = AT_ONCE,
) -> None:
    """Do `work` for each, `at_once` at a time, begun in order."""
    left = iter(list(items))

    async def take() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(take())
