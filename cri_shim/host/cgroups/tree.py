"""Finds, empties and removes the cgroups of containers in all hierarchies. OCI runtimes create them.

Rules:
- A cgroup is identified by its path relative to the mount points. On v1 it is a directory in each hierarchy, and it is
  removed only when all of them are: a runtime that is killed may leave some.
- `kill_all` and `remove` refuse the root cgroup, are idempotent, and are bounded in time.
- Processes are killed through a pidfd, and only while the cgroup lists them, so that a reused pid is never hit.
- Synchronous methods read or write a few small files. Methods that wait for the kernel, or visit any number of
  processes, are coroutines and use a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.host.cgroups import counters, open_files, usage
from cri_shim.host.cgroups.directory import (
    first_bytes,
    has_anything,
    processes_in,
    remove_subtree,
    subtree,
    write_control,
)
from cri_shim.host.cgroups.layout import detect_layout, parse_proc_cgroup
from cri_shim.host.cgroups.placement import is_named_after
from cri_shim.host.pidfd import ends_of, kill_pidfd, open_pidfd
from cri_shim.host.process_counters import process_counters
from cri_shim.kernel_call import in_time
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.host.cgroups.counters import CgroupCounters
    from cri_shim.host.cgroups.layout import CgroupMode, Layout
    from cri_shim.host.cgroups.usage import CgroupStats
    from cri_shim.host.process_counters import ProcessCounters

_PAUSE_S = 0.1
"""Pause before another round, if no pidfd signals when the next one is worth while."""
_WAITED_FOR = 64
"""Endings awaited at once, since each takes a descriptor. The next round finds the processes that still run."""
_WITNESSES = ("memory", "pids", "cpu", "name=systemd")
"""v1 controllers whose path stands for a process's cgroup, in order: those whose limits matter most come first."""


class Cgroups:
    """The cgroups of this node. The synchronous methods may be called in any thread."""

    def __init__(
        self, layout: Layout, *, proc_dir: Path = Path("/proc"), page_sizes: Sequence[str] = ()
    ) -> None:
        self.layout = layout
        self._proc_dir = proc_dir
        self._usage = usage.UsageReader(layout)
        self._counters = counters.CounterReader(layout, page_sizes)

    @classmethod
    def detect(cls, root: Path = Path("/")) -> Self:
        """Detect the mounted hierarchies.

        Raises CriShimError if there is none.
        """
        page_sizes = tuple(counters.huge_page_sizes(root))
        return cls(detect_layout(root), proc_dir=root / "proc", page_sizes=page_sizes)

    @property
    def mode(self) -> CgroupMode:
        """v1, hybrid or v2."""
        return self.layout.mode

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers of all hierarchies."""
        return self.layout.controllers

    @property
    def limiting_controllers(self) -> frozenset[str]:
        """The controllers that OCI runtimes use for limits on this node."""
        return self.layout.limiting_controllers

    def cgroup_of(self, pid: int, *, controller: str | None = None) -> str | None:
        """The cgroup of a process for `controller`, by default for the first of `_WITNESSES` that is mounted.

        None if the process is gone, the controller is not mounted, or the cgroup is outside the mounted part.
        """
        try:
            paths = parse_proc_cgroup((self._proc_dir / f"{pid}/cgroup").read_text("utf-8"))
        except (FileNotFoundError, ProcessLookupError):
            return None
        for name in _WITNESSES if controller is None else (controller,):
            hierarchy = self.layout.of_controller(name)
            if hierarchy is not None and hierarchy.version == 1 and name in paths:
                return _below(hierarchy.mount_root, paths[name])
        if self.layout.unified is None or "" not in paths:
            return None
        if controller is not None and controller not in self.layout.unified.controllers:
            return None
        return _below(self.layout.unified.mount_root, paths[""])

    def exists(self, relative_dir: str) -> bool:
        """Whether the cgroup exists in any hierarchy."""
        return any(os.path.isdir(tree.path(relative_dir)) for tree in self.layout.hierarchies)

    def pids(self, relative_dir: str) -> list[int]:
        """The processes in the cgroup and its descendants, over all hierarchies."""
        found: set[int] = set()
        for tree in self.layout.hierarchies:
            for directory in subtree(tree.path(relative_dir)):
                found.update(processes_in(directory))
        found.discard(0)  # the kernel shows 0 for a process outside our PID namespace
        return sorted(found)

    async def kill_all(self, relative_dir: str, timeout_s: float) -> None:
        """Send SIGKILL to all processes in the cgroup and its descendants, and wait until it is empty.

        Raises DeadlineError, with the processes that are left, after `timeout_s` seconds.
        """
        _refuse_root(relative_dir)
        give_up_at = time.monotonic() + timeout_s
        before: list[int] = []
        self._forbid_forks(relative_dir)
        if self._is_empty(relative_dir):
            return
        killed = await in_time("killing the cgroup", self._kill, relative_dir)
        while killed:
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                raise DeadlineError(
                    f"cgroup /{relative_dir} is not empty {timeout_s:g} s after SIGKILL: {self._describe(killed)}"
                )
            await _settle(killed, before, left_s)
            before = killed
            killed = await in_time("killing the cgroup", self._kill_listed, relative_dir)

    async def remove(self, relative_dir: str, *, timeout_s: float = 2.0) -> None:
        """Remove the cgroup and its descendants from every hierarchy. Its processes must have ended.

        A process that just died keeps its cgroup busy for a moment, so the removal is retried for `timeout_s` seconds.

        Raises CriShimError, with the directory and the processes, if the cgroup stays busy.
        """
        _refuse_root(relative_dir)
        if open_files.hierarchy_of_files(self.layout) is None and not self.exists(relative_dir):
            return  # the usual case: the runtime removed it
        give_up_at = time.monotonic() + timeout_s
        before: list[int] = []
        while (
            busy := await in_time("removing the cgroup", self._remove, relative_dir)
        ) is not None:
            left = self.pids(relative_dir)
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                raise CriShimError(
                    f"cannot remove cgroup /{relative_dir}: {busy} is busy"
                    + (f" with {self._describe(left)}" if left else "")
                )
            await _settle(left, before, left_s)
            before = left

    def _is_empty(self, relative_dir: str) -> bool:
        """Whether the cgroup and its descendants are known to be empty. False if that is not certain.

        The lists of processes, which may be long, are read only if the pids controller counts no process.
        """
        pids = self.layout.of_controller("pids")
        if pids is None:
            return False
        try:
            if first_bytes(f"{pids.path(relative_dir)}/pids.current").strip() != b"0":
                return False
            return not any(
                has_anything(tree.path(relative_dir)) for tree in self.layout.hierarchies
            )
        except OSError:  # it is being removed, or was
            return not self.exists(relative_dir)

    def remove_if_empty(self, relative_dir: str) -> None:
        """Remove the cgroup from the hierarchies where it has neither processes nor children."""
        _refuse_root(relative_dir)
        for tree in self.layout.hierarchies:
            with contextlib.suppress(OSError):
                os.rmdir(tree.path(relative_dir))

    def find(self, container_id: str) -> set[str]:
        """All cgroups named after a container, below any parent. Synchronous: visits every cgroup of the node."""
        return {
            os.path.relpath(directory, tree.mount_point)
            for tree in self.layout.hierarchies
            for directory in subtree(str(tree.mount_point))
            if is_named_after(os.path.basename(directory), container_id)
        }

    def read_stats(self, relative_dir: str) -> CgroupStats:
        """The usage of the cgroup. Synchronous: reads some six small files."""
        return self._usage.read(relative_dir)

    def cpu_usage_ns(self, relative_dir: str) -> int | None:
        """The CPU time of the cgroup since it was created, or None if it is gone. Synchronous: one small file."""
        return self._usage.cpu_usage_ns(relative_dir)

    def read_counters(self, relative_dir: str) -> CgroupCounters:
        """What `read_stats` leaves out. Synchronous: reads some ten small files."""
        return self._counters.read(relative_dir)

    def count_processes(self, relative_dir: str) -> ProcessCounters:
        """The cgroup's processes and their open files, of a large cgroup in part (`process_counters`)."""
        tree = self.layout.of_controller("pids") or self.layout.hierarchies[0]
        return process_counters(tree.path(relative_dir), str(self._proc_dir))

    def oom_kills(self, relative_dir: str) -> int | None:
        """The number of OOM kills in the cgroup, or None if the node does not count them."""
        return usage.oom_kills(self.layout, relative_dir)

    # --- open files ----------------------------------------------------------------------------------------------

    @property
    def lack_of_files_limits(self) -> str:
        """Why open files cannot be limited on this node, or "" if they can."""
        return open_files.lack_of_files_limits(self.layout)

    def files_limit(self, relative_dir: str) -> int | None:
        """The cgroup's limit of open files: -1 for none, None if none was ever set."""
        files = open_files.hierarchy_of_files(self.layout)
        return None if files is None else open_files.limit_in_force(files, relative_dir)

    def limit_files(self, relative_dir: str, limit: int) -> None:
        """Limit the open files of the cgroup's processes together; -1 removes the limit.

        Raises TooManyFilesError if they have more open files already, OSError, CriShimError.
        """
        _refuse_root(relative_dir)
        files = open_files.hierarchy_of_files(self.layout)
        if files is None:
            raise CriShimError(f"cgroup /{relative_dir}: files: {self.lack_of_files_limits}")
        open_files.set_limit(files, relative_dir, limit)
        self.gather_files(relative_dir)

    def gather_files(self, relative_dir: str) -> None:
        """Apply the cgroup's limit of open files to processes that a runtime has added since.

        No effect without such a limit. Raises what `limit_files` raises.
        """
        files = open_files.hierarchy_of_files(self.layout)
        if files is None or not files.directory(relative_dir).is_dir():
            return
        below = files.path(relative_dir)
        open_files.gather(
            files,
            relative_dir,
            everywhere=lambda: self.pids(relative_dir),
            inside=lambda: (pid for each in subtree(below) for pid in processes_in(each)),
        )

    def _remove(self, relative_dir: str) -> str | None:
        """Remove the cgroup from every hierarchy where it is not busy. Returns a busy directory, or None."""
        busy = None
        for tree in self.layout.hierarchies:
            busy = remove_subtree(tree.path(relative_dir)) or busy
        if busy is None and (files := open_files.hierarchy_of_files(self.layout)) is not None:
            open_files.prune(files, relative_dir)
        return busy

    def _kill(self, relative_dir: str) -> list[int]:
        self._kill_subtree(relative_dir)
        return self._kill_listed(relative_dir)

    def _forbid_forks(self, relative_dir: str) -> None:
        # pids.max=0 stops a fork bomb, which could fork faster than we kill. The cgroup is about to be removed, so the
        # old limit is not restored.
        pids = self.layout.of_controller("pids")
        if pids is not None:
            write_control(f"{pids.path(relative_dir)}/pids.max", "0")

    def _kill_subtree(self, relative_dir: str) -> None:
        if self.layout.unified is not None:  # Linux 5.14
            write_control(f"{self.layout.unified.path(relative_dir)}/cgroup.kill", "1")

    def _kill_listed(self, relative_dir: str) -> list[int]:
        """Kill the processes that the cgroup lists now. Returns them."""
        pidfds: dict[int, int] = {}
        try:
            first = self.pids(relative_dir)
            for pid in first:
                pidfd = open_pidfd(pid)
                if pidfd is not None:
                    pidfds[pid] = pidfd
            # Read the list again after opening the pidfds. A pid that is still listed was not reused by a process of
            # another cgroup, so its pidfd is a process of this cgroup.
            listed = self.pids(relative_dir) if first else []
            for pid in listed:
                if pid in pidfds:
                    kill_pidfd(pidfds[pid])
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)
        if listed:
            self._thaw(relative_dir)
        return listed

    def _thaw(self, relative_dir: str) -> None:
        # The v1 freezer delays even SIGKILL: a paused container dies only when it is thawed.
        freezer = self.layout.of_controller("freezer")
        if freezer is not None and freezer.version == 1:
            for directory in subtree(freezer.path(relative_dir)):
                write_control(f"{directory}/freezer.state", "THAWED")

    def _describe(self, pids: list[int]) -> str:
        """The number of processes, and pid, name and state letter (proc(5)) of the first five, for a message."""
        named = []
        for pid in pids[:5]:
            try:
                stat = (self._proc_dir / f"{pid}/stat").read_text("utf-8", "replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            name, _, rest = stat.partition("(")[2].rpartition(")")
            named.append(f"{pid} ({name}, state {rest.split()[0]})")
        more = f" and {len(pids) - 5} more" if len(pids) > 5 else ""
        return f"{len(pids)} process(es) " + ", ".join(named) + more


def _refuse_root(relative_dir: str) -> None:
    parts = relative_dir.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{quoted(relative_dir)} is not a relative path of a cgroup below the root"
        )


def _below(mount_root: str, path: str) -> str | None:
    """A path of /proc/PID/cgroup relative to the mount point, or None if it is outside the mounted part."""
    root = mount_root.rstrip("/")
    if path == root or path.startswith(root + "/"):
        return path[len(root) :].lstrip("/")
    return None


async def _settle(pids: list[int], before: list[int], left_s: float) -> None:
    """Wait at most `left_s` until another round is worth while.

    Wait for the endings of `pids`. If they are the same as in the round `before`, their endings were awaited in vain:
    just pause.
    """
    pause_s = min(_PAUSE_S, left_s)
    if pids and pids != before:
        await ends_of([(pid, None) for pid in pids[:_WAITED_FOR]], pause_s)
    else:
        await asyncio.sleep(pause_s)
