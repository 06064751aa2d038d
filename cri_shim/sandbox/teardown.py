"""Removes what a sandbox or container owns, by its ID. Rollback, Stop, Remove and recovery all use these steps.

Rules:
- Every step is idempotent, and succeeds if there is nothing to remove.
- A step needs only the record: paths, cgroup and runtime derive from the ID, the cgroup parent and the handler.
- The OCI runtime's `delete --force` is not relied on: a runtime that was killed during a creation leaves cgroups that
  delete does not report. So processes and cgroups are checked and removed here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import uninterrupted
from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.kernel_call import in_time, in_time_for
from cri_shim.oci.vm import KATA_DIRS, clear_kept, kept_cgroups
from cri_shim.operations import step
from cri_shim.sandbox.store.model import Process
from cri_shim.sandbox.store.processes import is_configured, own_kernel_runtime, read_top_process
from cri_shim.sandbox.vm_processes import asks_to_delete, asks_to_kill, kill_strays

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.oci.conmon import Monitors
    from cri_shim.oci.runtime import Runtime
    from cri_shim.paths import ObjectPaths, Paths
    from cri_shim.rollback import Rollback
    from cri_shim.sandbox.store.processes import Held

log = structlog.get_logger()
KILL_TIMEOUT_S = 10.0
"""Far longer than SIGKILL takes. A process that is left then hangs in the kernel."""


class Teardown:
    """Removes the processes, runtime state, cgroups, mounts and directories of objects."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        cgroups: Cgroups,
        monitors: Monitors,
        runtime_of: Callable[[str], Runtime],
        clear_of_shim: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """`clear_of_shim(handler, object ID)` removes what a shim left, whether its handler is configured or not."""
        self._clear_of_shim = clear_of_shim
        self._host = host
        self._paths = paths
        self._cgroups = cgroups
        self._monitors = monitors
        self._runtime_of = runtime_of

    async def kill_processes(self, held: Held) -> None:
        """Kill the monitor or pause process with its descendants, and all processes in the object's cgroup.

        In a pod with its own kernel the runtime kills first. Raises DeadlineError with the processes that do not end.
        """
        runtime = own_kernel_runtime(self._runtime_of, held.handler)
        if runtime is not None:
            await self._kill_inside(held, runtime)
        await self._kill_families(
            held.object_id, await self._top_processes(held.object_id, held.paths)
        )
        await self._kill_cgroup(held.cgroup_dir)

    async def _kill_cgroup(self, cgroup_dir: str) -> None:
        with step("killing the cgroup"):
            await self._cgroups.kill_all(cgroup_dir, timeout_s=KILL_TIMEOUT_S)

    async def _remove_cgroup(self, cgroup_dir: str) -> None:
        with step("removing the cgroup"):
            await self._cgroups.remove(cgroup_dir)

    async def _remove_cgroups(self, cgroup_dirs: Iterable[str]) -> None:
        for cgroup_dir in cgroup_dirs:
            await self._kill_cgroup(cgroup_dir)
            await self._remove_cgroup(cgroup_dir)

    async def _kill_families(self, object_id: str, tops: Sequence[Process]) -> None:
        for top in tops:
            with step("killing its processes"):
                gone = await self._host.kill_family(
                    top.pid, top.start_ticks, timeout_s=KILL_TIMEOUT_S
                )
            if not gone:
                raise DeadlineError(
                    f"{object_id}: process {top.pid} or its descendants did not end after SIGKILL"
                )

    async def _top_processes(self, object_id: str, paths: ObjectPaths) -> list[Process]:
        noted = read_top_process(paths)
        if noted is not None:
            return [noted]
        # None is recorded if the daemon was killed between the start of a monitor and its record, or if a runtime was
        # interrupted while it started a pause process. Then find the processes by their command lines.
        unnoted = await self._monitors.monitors_of(object_id)
        return [Process(m.pid, m.start_time_ticks) for m in unnoted]

    async def process_without_record(
        self, object_id: str, handlers: Iterable[str], paths: ObjectPaths
    ) -> None:
        """As `process`, for an object of which only the ID is known. Its cgroups are those named after the ID."""
        tops = await self._top_processes(object_id, paths)
        places = set()
        for top in tops:
            family, _ = await in_time("looking at processes", self._host.family_of, top.pid)
            places |= {self._cgroups.cgroup_of(pid) for pid in (top.pid, *family)}
        places |= await in_time("looking for cgroups", self._cgroups.find, object_id)
        await self._kill_families(object_id, tops)
        for handler in handlers:
            runtime = own_kernel_runtime(self._runtime_of, handler)
            if runtime is not None:
                await asks_to_kill(runtime, object_id)
                await asks_to_delete(runtime, object_id)
                await kill_strays(self._host, object_id)
                await runtime.clear(object_id, object_id)
            else:
                await self.forget_in_runtime(object_id, handler)
        for cgroup_dir in places:
            if cgroup_dir is not None and object_id in cgroup_dir.rpartition("/")[2]:
                await self._kill_cgroup(cgroup_dir)
                await self._remove_cgroup(cgroup_dir)

    async def forget_in_runtime(self, object_id: str, handler: str) -> None:
        """Delete the container in the OCI runtime."""
        try:
            await self._runtime_of(handler).delete(object_id, force=True)
        except CriShimError as error:
            # The handler may be gone from the configuration, or the runtime's state damaged. Remove the state's files.
            log.warning("runtime delete failed", id=object_id, error=str(error))
            left = self._paths.runtime_root(handler) / object_id
            await in_time_for(
                object_id, "removing its files", _remove_with_mounts, self._host, left
            )

    async def process(self, held: Held) -> None:
        """Remove monitor, processes, runtime state and cgroup of a container."""
        runtime = own_kernel_runtime(self._runtime_of, held.handler)
        if runtime is not None:
            await self._process_inside(held, runtime)
            return
        await self.kill_processes(held)
        await self.forget_in_runtime(held.object_id, held.handler)
        if not is_configured(self._runtime_of, held.handler):
            await self._clear_of_any_kind(held)
        await self._remove_cgroup(held.cgroup_dir)

    async def _clear_of_any_kind(self, held: Held) -> None:
        """The handler is gone from the configuration, and its kind with it: remove what any runtime may have left."""
        await kill_strays(self._host, held.object_id)
        await self._clear_of_shim(held.handler, held.object_id)
        places = (self._paths.runtime_root(held.handler), *KATA_DIRS)
        await in_time_for(
            held.object_id,
            "clearing what a runtime left",
            clear_kept,
            held.object_id,
            held.pod_id,
            places,
        )
        await self._remove_cgroups(kept_cgroups(held.object_id, held.cgroup_dir, systemd=True))

    # --- pods with kernels of their own --------------------------------------------------------------------------

    async def _kill_inside(self, held: Held, runtime: Runtime) -> None:
        """Have the runtime kill the container. If it does not answer, kill the whole sandbox."""
        if not await asks_to_kill(runtime, held.object_id):
            await self.end_sandbox(held)

    async def end_sandbox(self, held: Held) -> None:
        """Kill all processes of the object's sandbox on the node, without its runtime.

        The exit watch reports the end of the pause process. Raises DeadlineError.
        """
        log.warning("the sandbox does not answer and is killed", sandbox_id=held.pod_id)
        paths = self._paths.sandbox(held.pod_id)
        await self._kill_families(held.pod_id, await self._top_processes(held.pod_id, paths))
        await kill_strays(self._host, held.pod_id)

    async def _process_inside(self, held: Held, runtime: Runtime) -> None:
        """Have the runtime kill and delete, since only it reaches processes inside. Then kill remaining processes."""
        object_id = held.object_id
        answered = await asks_to_kill(runtime, object_id) and await asks_to_delete(
            runtime, object_id
        )
        if not answered and object_id != held.pod_id:
            await self.end_sandbox(held)
        await self._kill_families(object_id, await self._top_processes(object_id, held.paths))
        await kill_strays(self._host, object_id)
        if not answered:
            # The process that held the runtime's locks is dead now, so try again.
            await asks_to_delete(runtime, object_id)
        with step("clearing what the runtime left"):
            await runtime.clear(object_id, held.pod_id)
        await self._remove_cgroups(runtime.cgroup_dirs(object_id, held.cgroup_dir))

    async def mounts(self, paths: ObjectPaths) -> None:
        """Unmount everything below the object's state directory: root file system, /dev/shm, image volumes."""
        await in_time_for(
            paths.state_dir.name, "unmounting", self._host.unmount_below, paths.state_dir
        )

    async def state_files(self, paths: ObjectPaths) -> None:
        """Remove the state directory with its mounts, the exit file, and the monitor's socket link.

        The exit file is kept until now: if the status that was derived from it is lost, recovery needs it again.
        """
        await in_time_for(
            paths.state_dir.name,
            "removing its volatile files",
            _remove_volatile,
            self._host,
            paths,
            self._paths.exits_dir,
        )
        object_id = paths.state_dir.name
        self._monitors.discard(object_id)

    async def root_files(self, paths: ObjectPaths) -> None:
        """Remove the root directory. The record is removed first, so that a partly removed object has no record."""
        paths.record_file.unlink(missing_ok=True)
        await self._remove(paths.root_dir)

    async def _remove(self, directory: Path) -> None:
        # No deadline: the removal of a writable layer of millions of files takes long. It has a thread of its own.
        with step("removing files"):
            await uninterrupted(self._host.remove_tree, directory)

    async def record(self, paths: ObjectPaths, rollback: Rollback) -> str:
        """The last undo step of a creation: `root_files`. Returns the names of the steps that failed, or "".

        If an earlier step failed, the files stay, since a further call needs the record.
        """
        if not rollback.failed:
            try:
                await self.root_files(paths)
            except OSError:
                rollback.failed.append("record")
                log.exception("cannot remove the record", id=paths.root_dir.name)
        return ", ".join(rollback.failed)


class Attempts:
    """Runs steps that must all be tried, and collects their errors."""

    def __init__(self) -> None:
        self._failures: list[Exception] = []

    async def each(self, *steps: Callable[[], Awaitable[None]]) -> bool:
        """Run the steps in order. Returns whether all of them succeeded."""
        succeeded = True  # counts these steps only: another `each` may run in parallel
        for take_away in steps:
            try:
                await take_away()
            except (CriShimError, OSError) as error:
                self._failures.append(error)
                succeeded = False
        return succeeded

    @property
    def failed(self) -> bool:
        """Whether any step failed."""
        return bool(self._failures)

    def finish(self, object_id: str) -> None:
        """Raise the first error, if there was one, and log the others."""
        for extra in self._failures[1:]:
            log.error("failed as well", id=object_id, error=str(extra))
        if self._failures:
            raise self._failures[0]


def _remove_with_mounts(host: Host, directory: Path) -> None:
    """Remove a small directory of our own with the mounts in it. Blocking."""
    host.unmount_below(directory)
    host.remove_tree(directory)


def _remove_volatile(host: Host, paths: ObjectPaths, exits_dir: Path) -> None:
    """Remove the state directory of an object and its exit file. Blocking."""
    never_monitored = paths.state_dir.is_dir() and not paths.persist_dir.is_dir()
    _remove_with_mounts(host, paths.state_dir)
    object_id = paths.state_dir.name
    try:
        (exits_dir / object_id).unlink()
    except FileNotFoundError:
        if never_monitored:
            return
        # A monitor that was killed while it wrote leaves a temporary file `<id>.*`. The directory has only files of
        # objects that have ended, so listing it is cheap.
        with suppress(FileNotFoundError):
            for entry in exits_dir.iterdir():
                if entry.name.startswith(f"{object_id}."):
                    entry.unlink(missing_ok=True)
