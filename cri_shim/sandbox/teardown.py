"""The one implementation of each undo: what a sandbox or container owns, taken away by its ID.

Rollback, Stop, Remove and recovery all call these. Rules:
- Every step is idempotent and succeeds on what is not there.
- Every step needs only the record: paths, cgroup and runtime derive from the ID, the parent and the handler.
- The OCI runtime's `delete --force` is no complete undo (killed half-way through a creation it leaves cgroups behind
  and says nothing), so its answer is never trusted: processes and cgroups are looked at themselves.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import uninterrupted
from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.kernel_call import in_time, in_time_for
from cri_shim.operations import step
from cri_shim.sandbox.store.model import Process
from cri_shim.sandbox.store.processes import read_top_process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.oci.conmon import Monitors
    from cri_shim.oci.runtime import Runtime
    from cri_shim.paths import ObjectPaths, Paths
    from cri_shim.rollback import Rollback

log = structlog.get_logger()
KILL_TIMEOUT_S = 10.0
"""Long past what SIGKILL needs: what is still there then sits in the kernel."""


class Teardown:
    """Takes away what an object owns outside its own directories, and those."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        cgroups: Cgroups,
        monitors: Monitors,
        runtime_of: Callable[[str], Runtime],
    ) -> None:
        self._host = host
        self._paths = paths
        self._cgroups = cgroups
        self._monitors = monitors
        self._runtime_of = runtime_of

    async def kill_processes(self, object_id: str, cgroup_dir: str, paths: ObjectPaths) -> None:
        """Kill the monitor, or a pause process, with all below it, and everything in the object's cgroup.

        Raises DeadlineError naming what can't be killed.
        """
        await self._kill_families(object_id, await self._top_processes(object_id, paths))
        await self._kill_cgroup(cgroup_dir)

    async def _kill_cgroup(self, cgroup_dir: str) -> None:
        with step("killing the cgroup"):
            await self._cgroups.kill_all(cgroup_dir, timeout_s=KILL_TIMEOUT_S)

    async def _remove_cgroup(self, cgroup_dir: str) -> None:
        with step("removing the cgroup"):
            await self._cgroups.remove(cgroup_dir)

    async def _kill_families(self, object_id: str, tops: Sequence[Process]) -> None:
        for top in tops:
            with step("killing its processes"):
                gone = await self._host.kill_family(
                    top.pid, top.start_ticks, timeout_s=KILL_TIMEOUT_S
                )
            if not gone:
                raise DeadlineError(
                    f"{object_id}: process {top.pid} and those below it can't be killed"
                )

    async def _top_processes(self, object_id: str, paths: ObjectPaths) -> list[Process]:
        noted = read_top_process(paths)
        if noted is not None:
            return [noted]
        # A daemon killed between a monitor's start and its note leaves one that only its command line names; so does
        # one killed, or a call given up, while a runtime starts a pause process.
        unnoted = await self._monitors.monitors_of(object_id)
        return [Process(m.pid, m.start_time_ticks) for m in unnoted]

    async def process_without_record(
        self, object_id: str, handlers: Iterable[str], paths: ObjectPaths
    ) -> None:
        """As `process`, where nothing but the ID is known: its cgroups are those that are named after it."""
        tops = await self._top_processes(object_id, paths)
        places = set()
        for top in tops:
            family, _ = await in_time("looking at processes", self._host.family_of, top.pid)
            places |= {self._cgroups.cgroup_of(pid) for pid in (top.pid, *family)}
        places |= await in_time("looking for cgroups", self._cgroups.find, object_id)
        await self._kill_families(object_id, tops)
        for handler in handlers:
            await self.forget_in_runtime(object_id, handler)
        for cgroup_dir in places:
            if cgroup_dir is not None and object_id in cgroup_dir.rpartition("/")[2]:
                await self._kill_cgroup(cgroup_dir)
                await self._remove_cgroup(cgroup_dir)

    async def forget_in_runtime(self, object_id: str, handler: str) -> None:
        """Make the OCI runtime forget the container."""
        try:
            await self._runtime_of(handler).delete(object_id, force=True)
        except CriShimError as error:
            # A handler that left the configuration, a damaged state directory: what it kept is files.
            log.warning("runtime delete failed", id=object_id, error=str(error))
            left = self._paths.runtime_root(handler) / object_id
            await in_time_for(
                object_id, "removing its files", _remove_with_mounts, self._host, left
            )

    async def process(
        self, object_id: str, handler: str, cgroup_dir: str, paths: ObjectPaths
    ) -> None:
        """A container's process side: monitor, processes, runtime state, cgroup."""
        await self.kill_processes(object_id, cgroup_dir, paths)
        await self.forget_in_runtime(object_id, handler)
        await self._remove_cgroup(cgroup_dir)

    async def mounts(self, paths: ObjectPaths) -> None:
        """Every mount below the object's volatile directory: root file system, /dev/shm."""
        await in_time_for(
            paths.state_dir.name, "unmounting", self._host.unmount_below, paths.state_dir
        )

    async def state_files(self, paths: ObjectPaths) -> None:
        """The volatile directory, its mounts first, and what the monitor left outside it.

        The exit file stays until now: should the status that was made of it be lost, recovery needs it again.
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
        """The persistent directory: the record goes first, so that a half-removed object is not an object."""
        paths.record_file.unlink(missing_ok=True)
        await self._remove(paths.root_dir)

    async def _remove(self, directory: Path) -> None:
        # Without a deadline: a writable layer of millions of files takes its time. The thread is of this removal alone.
        with step("removing files"):
            await uninterrupted(self._host.remove_tree, directory)

    async def record(self, paths: ObjectPaths, rollback: Rollback) -> str:
        """The last step of a creation's undoing: `root_files`. Returns what could not be undone, "" if all was.

        If an earlier step failed, the files stay: a further call needs the record to finish.
        """
        if not rollback.failed:
            try:
                await self.root_files(paths)
            except OSError:
                rollback.failed.append("record")
                log.exception("record not removed", id=paths.root_dir.name)
        return ", ".join(rollback.failed)


class Attempts:
    """Steps that are all tried, whatever becomes of the others."""

    def __init__(self) -> None:
        self._failures: list[Exception] = []

    async def each(self, *steps: Callable[[], Awaitable[None]]) -> bool:
        """Try them in order; whether all of these succeeded."""
        succeeded = True  # of these: others may be tried at the same time
        for take_away in steps:
            try:
                await take_away()
            except (CriShimError, OSError) as error:
                self._failures.append(error)
                succeeded = False
        return succeeded

    @property
    def failed(self) -> bool:
        """Whether any of them has."""
        return bool(self._failures)

    def finish(self, object_id: str) -> None:
        """Raise the first failure, if there was one; the others are logged."""
        for extra in self._failures[1:]:
            log.error("failed as well", id=object_id, error=str(extra))
        if self._failures:
            raise self._failures[0]


def _remove_with_mounts(host: Host, directory: Path) -> None:
    """For a directory of ours, a few files; blocking."""
    host.unmount_below(directory)
    host.remove_tree(directory)


def _remove_volatile(host: Host, paths: ObjectPaths, exits_dir: Path) -> None:
    """The directory of an object, and what its monitor left. Blocking."""
    never_monitored = paths.state_dir.is_dir() and not paths.persist_dir.is_dir()
    _remove_with_mounts(host, paths.state_dir)
    object_id = paths.state_dir.name
    try:
        (exits_dir / object_id).unlink()
    except FileNotFoundError:
        if never_monitored:
            return
        # Killed while it was writing, the monitor has left a file of a name of its own. Beside it lie only those of
        # objects that have ended.
        with suppress(FileNotFoundError):
            for entry in exits_dir.iterdir():
                if entry.name.startswith(f"{object_id}."):
                    entry.unlink(missing_ok=True)
