"""Ends the execs of a former daemon, whose output and exit status nobody can receive any more.

Rules:
- They are listed before the server is ready, so that no exec of this daemon is among them.
- A pid from a file may have been reused. Its parent shows whether the process is an exec; in a pod with its own kernel,
  its command line does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import structlog

from cri_shim.oci.runtime import ExecFiles
from cri_shim.oci.shim.runtime import ShimRuntime
from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from cri_shim.host.port import Host
    from cri_shim.host.procstat import ProcessEntry
    from cri_shim.oci.runtime import Runtime
    from cri_shim.paths import Paths
    from cri_shim.sandbox.store.store import Container

log = structlog.get_logger()
KILL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class LeftoverExecs:
    """The leftover execs of one container: their processes, and their files."""

    host: Host
    container_id: str
    files: tuple[Path, ...]
    processes: tuple[ProcessEntry, ...]
    cgroup_pids: tuple[int, ...]
    """The processes in the container's cgroup, among which descendants of an exec are found by their session."""
    console_dir: Path
    runtime: Runtime | None = None
    """For a container with its own kernel: the runtime, which must end the commands that the processes represent."""

    @classmethod
    def of(
        cls,
        host: Host,
        container: Container,
        paths: Paths,
        cgroup_pids: Collection[int],
        runtime: Runtime | None = None,
    ) -> Self:
        """List the execs of a container; `cgroup_pids` are the processes in the container's cgroup.

        Pass `runtime` for a container with its own kernel, whose processes on the node may be in any cgroup.
        """
        files = tuple(sorted(paths.container(container.id).exec_dir.glob("*")))
        processes = []
        for file in files:
            try:
                pid = int(file.read_text()) if file.suffix == ".pid" else 0
            except (OSError, ValueError):
                continue
            entry = host.process_entry(pid) if runtime is not None or pid in cgroup_pids else None
            if entry is None:
                continue
            if (
                _stands_for_one(host, entry, container)
                if runtime is not None
                else _came_from_outside(host, entry, cgroup_pids, container)
            ):
                processes.append(entry)
        return cls(
            host,
            container.id,
            files,
            tuple(processes),
            tuple(cgroup_pids),
            paths.console_dir,
            runtime,
        )

    def __bool__(self) -> bool:
        """Whether there is anything to kill or remove."""
        return bool(self.files)

    async def end(self) -> None:
        """Kill the execs with all their descendants, and remove their files."""
        for entry in self.processes:
            log.info(
                "killing an exec of the former daemon",
                container_id=self.container_id,
                pid=entry.pid,
            )
            with step("killing an exec of the former daemon"):
                if self.runtime is not None:
                    await self._end_inside(self.runtime, entry.pid)
                await self.host.kill_family(
                    entry.pid,
                    entry.start_ticks,
                    timeout_s=KILL_TIMEOUT_S,
                    strays=lambda: self.cgroup_pids,
                )
        if isinstance(self.runtime, ShimRuntime):
            with step("killing execs of the former daemon"):
                for file in self.files:
                    if file.suffix == ".json":
                        await self.runtime.end_exec(self.container_id, _files_of(file), 0)
        for file in self.files:
            (self.console_dir / file.stem).unlink(missing_ok=True)
            file.unlink(missing_ok=True)

    async def _end_inside(self, runtime: Runtime, pid: int) -> None:
        for file in self.files:
            if file.suffix == ".pid" and file.read_text() == str(pid):
                await runtime.end_exec(self.container_id, _files_of(file), pid)


def _files_of(file: Path) -> ExecFiles:
    """Those of the exec that one of them is of."""
    return ExecFiles(*(file.with_suffix(suffix) for suffix in (".json", ".pid", ".inner")))


def _stands_for_one(host: Host, entry: ProcessEntry, container: Container) -> bool:
    """Whether the process represents an exec: its command line names the container, so the pid was not reused."""
    known = {p.pid for p in (container.status.process, container.status.monitor) if p}
    return entry.pid not in known and host.names(entry.pid, container.id)


def _came_from_outside(
    host: Host, entry: ProcessEntry, cgroup_pids: Collection[int], container: Container
) -> bool:
    """Whether the process entered the container from outside, as an exec does, instead of being forked in it.

    The parent of an exec is the daemon, or the process that inherits a dead daemon's children, in the daemon's PID
    namespace. The container's other processes descend from its first process. An orphan among them is re-parented to
    the first process of its PID namespace, or to the monitor if the container shares the node's PID namespace.
    """
    known = {p.pid for p in (container.status.process, container.status.monitor) if p}
    return (
        entry.pid not in known
        and entry.parent_pid not in known
        and entry.parent_pid not in cgroup_pids
        and host.pid_namespace_depth(entry.parent_pid) == 0
    )
