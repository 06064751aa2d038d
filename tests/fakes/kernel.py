"""A fake kernel: processes, mounts, network namespaces and cgroups as entries in dictionaries.

It is what the node harness hands in for `cri_shim.host.port.Host`, and has the same signatures.
Process numbers are above the highest that Linux gives out: one that slipped through could hit nobody.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from cri_shim.errors import CriShimError, DeadlineError, TooManyFilesError
from cri_shim.host import tree
from cri_shim.host.block_devices import FileSystem
from cri_shim.host.cgroups.counters import CgroupCounters
from cri_shim.host.process_counters import ProcessCounters
from cri_shim.host.procstat import ProcessEntry
from cri_shim.host.userns import UserNamespace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from cri_shim.host.cgroups.usage import CgroupStats
    from cri_shim.host.interface_counters import InterfaceCounters
    from tests.fakes.points import Points

_FIRST_PID = 5_000_000
USERNS_FD, NETNS_FD = 1001, 1002
"""Descriptors of a new pod's user namespace and network namespace."""


@dataclass(eq=False)
class FakeProcess:
    """A running process."""

    pid: int
    start_ticks: int
    parent: int
    argv: tuple[str, ...] = ()
    cgroup: str = ""
    stopped: bool = False
    deaf_to: set[int] = field(default_factory=set)
    """Signals that do not end it. SIGKILL among them means that it hangs in the kernel."""
    on_end: Callable[[int], None] | None = None
    """Called with the exit code at its end."""


class Kernel:
    """Records the effects on the kernel, so that a test can see what is left."""

    def __init__(self, points: Points) -> None:
        self.restored: list[tuple[Path, str, tuple[str, ...]]] = []
        """Addresses that were restored to interfaces."""
        self.points = points
        self.processes: dict[int, FakeProcess] = {}
        self.mounts: set[Path] = set()
        self.namespaces: dict[Path, dict[str, str]] = {}
        self.netns_fds: dict[Path, int | None] = {}
        self.user_namespaces: list[tuple[str, str]] = []
        """The mappings of the namespaces that are open now."""
        self.mapped: set[Path] = set()
        """Mounts that are ID-mapped to a user namespace."""
        self.owners: dict[Path, tuple[int, int]] = {}
        self.signals: list[tuple[int, int]] = []
        self.watches: dict[int, Callable[[], None]] = {}
        self.interfaces: dict[Path, list[InterfaceCounters]] = {}
        """By the file that pins their namespace."""
        self.cgroups = FakeCgroups(self)
        self._pids = count(_FIRST_PID)
        self._files = threading.Lock()
        """A directory is never removed in the middle of a mount on it."""

    # --- processes -----------------------------------------------------------------------------------------------

    def spawn(
        self, argv: Sequence[str] = (), *, parent: int = 1, cgroup: str = "", start_ticks: int = 0
    ) -> FakeProcess:
        pid = next(self._pids)
        process = FakeProcess(pid, start_ticks or pid - _FIRST_PID + 1000, parent, tuple(argv))
        process.cgroup = cgroup
        self.processes[pid] = process
        if cgroup:
            self.cgroups.dirs.add(cgroup)
        return process

    def end(self, pid: int, exit_code: int = 0) -> None:
        """The process ends."""
        process = self.processes.pop(pid, None)
        if process is None:
            return
        if process.on_end is not None:
            process.on_end(exit_code)
        watcher = self.watches.pop(pid, None)
        if watcher is not None:
            watcher()

    def deliver(self, pid: int, number: int) -> None:
        process = self.processes[pid]
        self.signals.append((pid, number))
        if number == signal.SIGSTOP:
            process.stopped = True
        elif number not in process.deaf_to:
            self.end(pid, 128 + number)

    def kill_process(
        self, pid: int, start_time_ticks: int | None, signal_number: int = signal.SIGKILL
    ) -> bool:
        process = self.processes.get(pid)
        if process is None or start_time_ticks not in (None, process.start_ticks):
            return False
        self.deliver(pid, signal_number)
        return True

    def watch_pids(self) -> FakePidWatch:
        return FakePidWatch(self)

    async def ends_of(
        self, processes: Iterable[tuple[int, int | None]], timeout_s: float
    ) -> list[int]:
        """A process that hangs never ends, so the timeout passes at once."""
        return [pid for pid, ticks in processes if self.start_time_ticks(pid) == ticks]

    def process_entry(self, pid: int) -> ProcessEntry | None:
        process = self.processes.get(pid)
        if process is None:
            return None
        return ProcessEntry(pid, process.parent, process.pid, process.start_ticks, zombie=False)

    def names(self, pid: int, word: str) -> bool:
        process = self.processes.get(pid)
        return process is not None and any(word in each for each in process.argv)

    def orphans_naming(self, word: str) -> list[ProcessEntry]:
        """The processes without a running parent."""
        return [
            entry
            for pid, process in list(self.processes.items())
            if process.parent not in self.processes
            and self.names(pid, word)
            and (entry := self.process_entry(pid)) is not None
        ]

    def restore_addresses(self, path: Path, interface: str, addresses: Sequence[object]) -> None:
        self.restored.append((path, interface, tuple(map(str, addresses))))

    def pid_namespace_depth(self, pid: int) -> int:
        process = self.processes.get(pid)
        return 1 if process and process.cgroup else 0

    def start_time_ticks(self, pid: int) -> int | None:
        process = self.processes.get(pid)
        return process.start_ticks if process else None

    def family_of(
        self, pid: int, strays: Iterable[int] = ()
    ) -> tuple[dict[int, ProcessEntry], bool]:
        found: dict[int, ProcessEntry] = {}
        for process in list(self.processes.values()):
            entry = self.process_entry(process.pid)
            if entry is not None and (process.parent == pid or process.parent in found):
                found[process.pid] = entry
        return found, True

    def open_files_limit(self, pid: int, proc_dir: str = "/proc") -> int | None:
        return 1024 if pid in self.processes else None

    async def kill_family(
        self,
        pid: int,
        start_ticks: int | None,
        *,
        timeout_s: float,
        strays: Callable[[], Iterable[int]] = tuple,
    ) -> bool:
        await self.points.pass_by("kill_family")
        root = self.processes.get(pid)
        if root is None or start_ticks not in (None, root.start_ticks):
            return True
        root.stopped = True
        for child in [p for p in self.processes.values() if p.parent == pid]:
            await self.kill_family(child.pid, None, timeout_s=timeout_s)
        self.deliver(pid, signal.SIGKILL)
        return pid not in self.processes

    # --- mounts, files, namespaces -------------------------------------------------------------------------------

    def mount_overlay(
        self,
        target: Path,
        *,
        layers_dir: Path,
        lowers: Sequence[str],
        upper: Path | None,
        work: Path | None,
        userns_fd: int | None = None,
        label: str = "",
    ) -> None:
        assert lowers
        assert layers_dir.is_absolute()
        self._mount("overlay", [p for p in (target, upper, work) if p], target)
        if userns_fd is not None:
            self.mapped.add(target)

    def bind(
        self, source: Path, target: Path, *, readonly: bool = False, recursive: bool = False
    ) -> None:
        self._mount("bind", [source], target)

    def mount_tmpfs(
        self,
        target: Path,
        *,
        size_bytes: int | None = None,
        mode: int = 0o1777,
        noexec: bool = True,
        owner: tuple[int, int] = (0, 0),
        label: str = "",
    ) -> None:
        self._mount("tmpfs", [target], target)
        self.owners[target] = owner

    def _mount(self, what: str, needed: Sequence[Path], target: Path) -> None:
        self.points.pass_in_thread(f"{what}.mount")
        with self._files:
            for path in needed:
                if not path.is_dir():
                    raise FileNotFoundError(errno.ENOENT, "no directory", str(path))
            self.mounts.add(target)
        self.points.pass_in_thread(f"{what}.mounted")

    def unmount_below(self, directory: Path) -> None:
        self.points.pass_in_thread("unmount")
        self.mounts = {m for m in self.mounts if not m.is_relative_to(directory)}

    disk_usage = staticmethod(tree.disk_usage)

    def remove_tree(self, path: Path) -> None:
        self.points.pass_in_thread(f"remove_tree {path.parent.parent.name}")
        with self._files:
            busy = [m for m in self.mounts if m.is_relative_to(path)]
            if busy:
                raise OSError(errno.EBUSY, "mounted", str(busy[0]))
            tree.remove_tree(path)

    def create_netns(
        self, path: Path, sysctls: Mapping[str, str], netns_fd: int | None = None
    ) -> None:
        self.points.pass_in_thread("netns.create")
        path.touch(exist_ok=False)
        self.netns_fds[path] = netns_fd
        self.namespaces[path] = dict(sysctls)
        self.points.pass_in_thread("netns.created")

    def set_netns_sysctls(
        self, path: Path, sysctls: Mapping[str, str], optional: Collection[str] = ()
    ) -> None:
        self.points.pass_in_thread("netns.sysctls")
        self.namespaces[path] |= {n: v for n, v in sysctls.items() if n not in optional}

    def remove_netns(self, path: Path) -> None:
        self.points.pass_in_thread("netns.remove")
        self.namespaces.pop(path, None)
        path.unlink(missing_ok=True)

    def file_system_of(self, directory: Path, sys_block: str = "/sys/dev/block") -> FileSystem:
        return FileSystem("/dev/vda1", 1 << 40, 1 << 20, 1 << 19)

    def device_path(self, major: int, minor: int, sys_block: str = "/sys/dev/block") -> str:
        return f"/dev/vd{'abcdefgh'[minor]}" if major == 254 else ""

    def interface_counters(
        self, pid: int, netns: Path, proc_dir: str = "/proc"
    ) -> list[InterfaceCounters] | None:
        return self.interfaces.get(netns) if pid in self.processes else None

    @asynccontextmanager
    async def new_user_namespace(
        self, reaper: object, *, uid_map: str, gid_map: str, with_network: bool
    ) -> AsyncIterator[UserNamespace]:
        await self.points.pass_by("userns.make")
        self.user_namespaces.append((uid_map, gid_map))
        try:
            await self.points.pass_by("userns.made")
            yield UserNamespace(USERNS_FD, NETNS_FD if with_network else None)
        finally:
            self.user_namespaces.pop()

    def open_user_namespace(self, pid: int) -> int | None:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if pid in self.processes else None

    def read_in_root(self, root: Path, path: str, max_bytes: int) -> bytes | None:
        self.points.pass_in_thread("accounts.read")
        return None


class FakePidWatch:
    """As `cri_shim.host.pidfd.PidWatch`, for the kernel's processes."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __len__(self) -> int:
        return len(self._kernel.watches)

    def watch(self, pid: int, start_time_ticks: int | None, callback: Callable[[], None]) -> None:
        if pid in self._kernel.watches:
            raise ValueError(f"process {pid} is watched already")
        if self._kernel.start_time_ticks(pid) != start_time_ticks:
            asyncio.get_running_loop().call_soon(callback)
            return
        loop = asyncio.get_running_loop()
        self._kernel.watches[pid] = lambda: _later(loop, callback)

    def unwatch(self, pid: int) -> None:
        self._kernel.watches.pop(pid, None)

    def close(self) -> None:
        self._kernel.watches.clear()


def _later(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    loop.call_soon(callback)


class FakeCgroups:
    """Stands for `Cgroups`, with the methods that the sandbox layer uses."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.dirs: set[str] = set()
        self.ooms: dict[str, int] = {}
        self.stats: dict[str, CgroupStats] = {}
        self.counters: dict[str, CgroupCounters] = {}
        self.counts_ooms = True
        self.misplaced = ""
        """The cgroups in which processes are instead of their own."""
        self.mode = "v1"
        self.controllers = frozenset({"memory", "cpu", "pids"})
        self.lack_of_files_limits = ""
        self.files_limits: dict[str, int] = {}
        self.limited_files: set[int] = set()
        """Processes to which such a limit applies."""
        self.open_files = 3
        """That each process has."""

    @property
    def limiting_controllers(self) -> frozenset[str]:
        return self.controllers

    def pids(self, relative_dir: str) -> list[int]:
        return sorted(p.pid for p in self._kernel.processes.values() if p.cgroup == relative_dir)

    def cgroup_of(self, pid: int) -> str | None:
        process = self._kernel.processes.get(pid)
        return self.misplaced or process.cgroup or None if process else None

    async def kill_all(self, relative_dir: str, timeout_s: float) -> None:
        await self._kernel.points.pass_by("cgroup.kill")
        for pid in self.pids(relative_dir):
            self._kernel.deliver(pid, signal.SIGKILL)
        if left := self.pids(relative_dir):
            raise DeadlineError(f"cgroup /{relative_dir}: {left} still there")

    async def remove(self, relative_dir: str, *, timeout_s: float = 2.0) -> None:
        await self._kernel.points.pass_by("cgroup.remove")
        if self.pids(relative_dir):
            raise CriShimError(f"cgroup /{relative_dir} is busy")
        self.dirs.discard(relative_dir)
        self.files_limits.pop(relative_dir, None)

    def files_limit(self, relative_dir: str) -> int | None:
        return self.files_limits.get(relative_dir)

    def limit_files(self, relative_dir: str, limit: int) -> None:
        self._kernel.points.pass_in_thread("files.limit")
        self.dirs.add(relative_dir)
        self.files_limits[relative_dir] = limit
        self.gather_files(relative_dir)
        self._kernel.points.pass_in_thread("files.limited")

    def gather_files(self, relative_dir: str) -> None:
        limit = self.files_limits.get(relative_dir)
        if limit is None:
            return
        if 0 <= limit < self.open_files * len(self.pids(relative_dir)):
            raise TooManyFilesError(f"cgroup /{relative_dir}: more files are open")
        self.limited_files |= set(self.pids(relative_dir))

    def find(self, container_id: str) -> set[str]:
        return {each for each in self.dirs if each.rpartition("/")[2] == container_id}

    def remove_if_empty(self, relative_dir: str) -> None:
        if not any(each.startswith(relative_dir + "/") for each in self.dirs):
            self.dirs.discard(relative_dir)

    def oom_kills(self, relative_dir: str) -> int | None:
        return self.ooms.get(relative_dir, 0) if self.counts_ooms else None

    def read_stats(self, relative_dir: str) -> CgroupStats:
        return self.stats[relative_dir]

    def cpu_usage_ns(self, relative_dir: str) -> int | None:
        stats = self.stats.get(relative_dir)
        return None if stats is None else stats.cpu_usage_ns

    def read_counters(self, relative_dir: str) -> CgroupCounters:
        return self.counters.get(relative_dir, CgroupCounters())

    def count_processes(self, relative_dir: str) -> ProcessCounters:
        count = len(self.pids(relative_dir))
        return ProcessCounters(count, self.open_files * count, 0)
