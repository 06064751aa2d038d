"""The cgroups of containers: found, emptied and taken away in every hierarchy at once. Runtimes make them.

Rules:
- A cgroup is named by its path relative to the mount points. On v1 the same path stands for a directory in each
  hierarchy, and only when all of them are gone is it gone: runtimes forget some when they are killed half-way.
- Emptying and removing never touch the root cgroup, whatever they are told; they are idempotent, and bounded in time.
- Processes die by pidfd and only while the cgroup still lists them, so that a reused pid is never hit.
- File reads and writes here are synchronous and short. What has to wait for the kernel, or for processes without
  number, is a coroutine and does it in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.host.cgroups import open_files, usage
from cri_shim.host.cgroups.layout import detect_layout, parse_proc_cgroup
from cri_shim.host.cgroups.placement import is_named_after
from cri_shim.host.pidfd import ends_of, kill_pidfd, open_pidfd
from cri_shim.kernel_call import in_time
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.host.cgroups.layout import CgroupMode, Layout
    from cri_shim.host.cgroups.usage import CgroupStats

_PAUSE_S = 0.1
"""Before a further look where nothing tells when it is worth one."""
_WAITED_FOR = 64
"""Ends waited for at once: each takes a descriptor, and who has not ended then is seen at the next look."""
_LINKS_OF_A_LEAF = 2
_WITNESSES = ("memory", "pids", "cpu", "name=systemd")
"""Whose path tells where a process is, best first: the controllers whose limits matter most."""
_VANISHED = frozenset({errno.ENOENT, errno.ENODEV})


class Cgroups:
    """The node's cgroups. `read_stats` and the other synchronous methods may be called in any thread."""

    def __init__(self, layout: Layout, *, proc_dir: Path = Path("/proc")) -> None:
        self.layout = layout
        self._proc_dir = proc_dir

    @classmethod
    def detect(cls, root: Path = Path("/")) -> Self:
        """Look at what is mounted.

        Raises CriShimError when there is no cgroup hierarchy.
        """
        return cls(detect_layout(root), proc_dir=root / "proc")

    @property
    def mode(self) -> CgroupMode:
        """v1, hybrid or v2."""
        return self.layout.mode

    @property
    def controllers(self) -> frozenset[str]:
        """What this node can account and limit."""
        return self.layout.controllers

    @property
    def limiting_controllers(self) -> frozenset[str]:
        """What OCI runtimes can limit on this node."""
        return self.layout.limiting_controllers

    def cgroup_of(self, pid: int, *, controller: str | None = None) -> str | None:
        """Where a process is: its cgroup for `controller`, by default for the one whose limits matter most.

        None when the process is gone, the controller is not mounted, or the cgroup lies outside what is mounted.
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
        """Whether any hierarchy has the cgroup."""
        return any(os.path.isdir(tree.path(relative_dir)) for tree in self.layout.hierarchies)

    def pids(self, relative_dir: str) -> list[int]:
        """The processes in the cgroup and below it, in any hierarchy."""
        found: set[int] = set()
        for tree in self.layout.hierarchies:
            for directory in _subtree(tree.path(relative_dir)):
                found.update(_processes(directory))
        found.discard(0)  # a process of a pid namespace that we can't see into
        return sorted(found)

    async def kill_all(self, relative_dir: str, timeout_s: float) -> None:
        """SIGKILL everything in the cgroup and below it, and wait until it is empty.

        Raises DeadlineError, naming what is left, when processes outlive that by `timeout_s`.
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
                    f"cgroup /{relative_dir}: {self._describe(killed)} still there {timeout_s:g} s after SIGKILL"
                )
            await _settle(killed, before, left_s)
            before = killed
            killed = await in_time("killing the cgroup", self._kill_listed, relative_dir)

    async def remove(self, relative_dir: str, *, timeout_s: float = 2.0) -> None:
        """Remove the cgroup and those below it from every hierarchy; its processes must be gone.

        A process that has just died keeps its cgroup busy a moment longer: that long it is tried again.

        Raises CriShimError, naming hierarchy and processes, when it stays busy.
        """
        _refuse_root(relative_dir)
        if open_files.hierarchy_of_files(self.layout) is None and not self.exists(relative_dir):
            return  # the runtime has seen to it
        give_up_at = time.monotonic() + timeout_s
        before: list[int] = []
        while (
            busy := await in_time("removing the cgroup", self._remove, relative_dir)
        ) is not None:
            left = self.pids(relative_dir)
            left_s = give_up_at - time.monotonic()
            if left_s <= 0:
                raise CriShimError(
                    f"cgroup /{relative_dir} could not be removed: {busy} is busy"
                    + (f" with {self._describe(left)}" if left else "")
                )
            await _settle(left, before, left_s)
            before = left

    def _is_empty(self, relative_dir: str) -> bool:
        """Whether nothing is in the cgroup or below it, as far as a short look tells; False says nothing.

        The lists themselves, which may be long, are read only where the kernel has counted nobody.
        """
        pids = self.layout.of_controller("pids")
        if pids is None:
            return False
        try:
            if _read_whole(f"{pids.path(relative_dir)}/pids.current").strip() != b"0":
                return False
            directories = (tree.path(relative_dir) for tree in self.layout.hierarchies)
            return not any(
                os.stat(directory).st_nlink != _LINKS_OF_A_LEAF
                or _read_whole(f"{directory}/cgroup.procs")
                for directory in directories
                if os.path.isdir(directory)
            )
        except OSError:  # it goes, or has gone
            return not self.exists(relative_dir)

    def remove_if_empty(self, relative_dir: str) -> None:
        """Remove the cgroup wherever it holds neither processes nor other cgroups; no harm where it does."""
        _refuse_root(relative_dir)
        for tree in self.layout.hierarchies:
            with contextlib.suppress(OSError):
                os.rmdir(tree.path(relative_dir))

    def find(self, container_id: str) -> set[str]:
        """Every cgroup named after a container, wherever its parent was. Synchronous: a look at all there are."""
        return {
            os.path.relpath(directory, tree.mount_point)
            for tree in self.layout.hierarchies
            for directory in _subtree(str(tree.mount_point))
            if is_named_after(os.path.basename(directory), container_id)
        }

    def read_stats(self, relative_dir: str) -> CgroupStats:
        """What the cgroup uses, in one pass. Synchronous: some six small files."""
        return usage.read_stats(self.layout, relative_dir)

    def oom_kills(self, relative_dir: str) -> int | None:
        """How many of its processes the kernel killed for want of memory; None when that can't be told."""
        return usage.oom_kills(self.layout, relative_dir)

    # --- open files ----------------------------------------------------------------------------------------------

    @property
    def lack_of_files_limits(self) -> str:
        """Why the number of open files can't be limited on this node; "" where it can be."""
        return open_files.lack_of_files_limits(self.layout)

    def files_limit(self, relative_dir: str) -> int | None:
        """How many files the cgroup's processes may have open, -1 for any number; None where that was never said."""
        files = open_files.hierarchy_of_files(self.layout)
        return None if files is None else open_files.limit_in_force(files, relative_dir)

    def limit_files(self, relative_dir: str, limit: int) -> None:
        """Bound the files that the cgroup's processes have open at once; -1 is no bound.

        Raises TooManyFilesError when they have more open already, OSError, CriShimError.
        """
        _refuse_root(relative_dir)
        files = open_files.hierarchy_of_files(self.layout)
        if files is None:
            raise CriShimError(f"cgroup /{relative_dir}: files: {self.lack_of_files_limits}")
        open_files.set_limit(files, relative_dir, limit)
        self.gather_files(relative_dir)

    def gather_files(self, relative_dir: str) -> None:
        """Have the cgroup's limit of open files hold for processes that a runtime has put into it since.

        Nothing where there is no such limit. Raises OSError as `limit_files`.
        """
        files = open_files.hierarchy_of_files(self.layout)
        if files is None or not files.directory(relative_dir).is_dir():
            return
        below = files.path(relative_dir)
        open_files.gather(
            files,
            relative_dir,
            everywhere=lambda: self.pids(relative_dir),
            inside=lambda: (pid for each in _subtree(below) for pid in _processes(each)),
        )

    def _remove(self, relative_dir: str) -> str | None:
        """Remove it wherever that is possible; a directory that is busy, if one is."""
        busy = None
        for tree in self.layout.hierarchies:
            busy = _remove_subtree(tree.path(relative_dir)) or busy
        if busy is None and (files := open_files.hierarchy_of_files(self.layout)) is not None:
            open_files.prune(files, relative_dir)
        return busy

    def _kill(self, relative_dir: str) -> list[int]:
        self._kill_subtree(relative_dir)
        return self._kill_listed(relative_dir)

    def _forbid_forks(self, relative_dir: str) -> None:
        # What forks faster than we kill stops growing here. The cgroup is about to go, so nothing is put back.
        pids = self.layout.of_controller("pids")
        if pids is not None:
            _write(f"{pids.path(relative_dir)}/pids.max", "0")

    def _kill_subtree(self, relative_dir: str) -> None:
        if self.layout.unified is not None:  # Linux 5.14
            _write(f"{self.layout.unified.path(relative_dir)}/cgroup.kill", "1")

    def _kill_listed(self, relative_dir: str) -> list[int]:
        """Kill what the cgroup lists now; that."""
        pidfds: dict[int, int] = {}
        try:
            first = self.pids(relative_dir)
            for pid in first:
                pidfd = open_pidfd(pid)
                if pidfd is not None:
                    pidfds[pid] = pidfd
            # Listed again once we hold it: the descriptor is a process of this cgroup, not a later one of that pid.
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
        # v1's freezer holds back SIGKILL too: a paused container dies when it is let go, and not before.
        freezer = self.layout.of_controller("freezer")
        if freezer is not None and freezer.version == 1:
            for directory in _subtree(freezer.path(relative_dir)):
                _write(f"{directory}/freezer.state", "THAWED")

    def _describe(self, pids: list[int]) -> str:
        """Who is left, for a person: number, name and the kernel's state letter of a few."""
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
            f"{quoted(relative_dir)} is not the relative path of a cgroup below the root"
        )


def _below(mount_root: str, path: str) -> str | None:
    """A path of /proc/PID/cgroup as seen from the mount point."""
    root = mount_root.rstrip("/")
    if path == root or path.startswith(root + "/"):
        return path[len(root) :].lstrip("/")
    return None


async def _settle(pids: list[int], before: list[int], left_s: float) -> None:
    """Wait, `left_s` at most, for a reason to look again: the end of `pids`, or a pause if those were seen `before`."""
    pause_s = min(_PAUSE_S, left_s)
    if pids and pids != before:
        await ends_of([(pid, None) for pid in pids[:_WAITED_FOR]], pause_s)
    else:
        await asyncio.sleep(pause_s)


def _subtree(top: str) -> Iterator[str]:
    """`top` and every cgroup below it, parents first; nothing when it is gone."""
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        try:
            children = _names_below(directory)
        except OSError as error:
            if error.errno in _VANISHED:
                continue
            raise
        yield directory
        waiting.extend(f"{directory}/{name}" for name in children)


def _names_below(directory: str) -> list[str]:
    # A directory has a link for itself, one for its name, and one from each directory in it: most cgroups have none.
    if os.stat(directory).st_nlink == _LINKS_OF_A_LEAF:
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _processes(directory: str) -> list[int]:
    try:
        return [int(line) for line in _read_whole(f"{directory}/cgroup.procs").split()]
    except OSError as error:
        # EOPNOTSUPP: a threaded v2 cgroup, whose processes its domain lists.
        if error.errno in _VANISHED or error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _read_whole(file: str) -> bytes:
    with open(file, "rb", buffering=0) as stream:
        return stream.readall()


def _remove_subtree(top: str) -> str | None:
    """Remove `top` and the cgroups below it, children first; the one that is busy, if any is."""
    for directory in reversed(list(_subtree(top))):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return directory
            if error.errno not in _VANISHED:
                raise
    return None


def _write(path: str, text: str) -> bool:
    """Write one control file; False when it isn't there or the kernel refuses."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode("ascii"))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
