"""Reads the resource usage of cgroups.

Rules:
- What the node does not account is None in its field, never an exception (`control_files`).
- Functions are synchronous and take microseconds per file. For many containers the caller uses a thread.
- The files are described in the kernel's Documentation/admin-guide: cgroup-v2.rst, cgroup-v1/memory.rst, cpuacct.rst.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.host.cgroups.control_files import Pairs, read_number
from cri_shim.host.cgroups.pressure import Pressure, read_pressure

if TYPE_CHECKING:
    from cri_shim.host.cgroups.layout import Layout

UNLIMITED_BYTES = 1 << 62
"""v1 shows an absent limit as the largest number of pages, just below 2**63 bytes."""
_OOM_KILLS = Pairs(["oom_kill"])
_CPU_V2 = Pairs(["usage_usec"])


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """Usage of a cgroup and its descendants. None: not accounted on this node."""

    read_at_ns: int
    """Time of the reading, on the real-time clock."""
    cpu_usage_ns: int | None = None
    """CPU time since the cgroup was created."""
    memory_usage_bytes: int | None = None
    working_set_bytes: int | None = None
    """Memory usage less inactive file pages, which the kernel reclaims first; never below 0. As in cadvisor."""
    rss_bytes: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    memory_limit_bytes: int | None = None
    """The cgroup's own limit; None also if it has none."""
    memory_available_bytes: int | None = None
    """Limit less working set, never below 0; None if there is no limit."""
    swap_usage_bytes: int | None = None
    pids_current: int | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


@dataclass(frozen=True, slots=True)
class _Memory:
    """The file and field names of one cgroup version."""

    usage: str
    limit: str
    swap: str
    rss: str
    inactive_file: str
    page_faults: str
    major_page_faults: str


_MEMORY_V1 = _Memory(
    usage="memory.usage_in_bytes",
    limit="memory.limit_in_bytes",
    swap="memory.memsw.usage_in_bytes",
    rss="total_rss",
    inactive_file="total_inactive_file",
    page_faults="total_pgfault",
    major_page_faults="total_pgmajfault",
)
_MEMORY_V2 = _Memory(
    usage="memory.current",
    limit="memory.max",
    swap="memory.swap.current",
    rss="anon",
    inactive_file="inactive_file",
    page_faults="pgfault",
    major_page_faults="pgmajfault",
)
_SWAP_V1 = "total_swap"


class UsageReader:
    """Reads the usage of this node's cgroups."""

    def __init__(self, layout: Layout) -> None:
        self._memory = layout.of_controller("memory")
        self._pids = layout.of_controller("pids")
        self._cpuacct = layout.of_controller("cpuacct")
        self._unified = layout.unified
        self._v1 = self._memory is not None and self._memory.version == 1
        self._words = words = _MEMORY_V1 if self._v1 else _MEMORY_V2
        names = [words.rss, words.inactive_file, words.page_faults, words.major_page_faults]
        self._memory_stat = Pairs([*names, _SWAP_V1] if self._v1 else names)

    def read(self, relative_dir: str) -> CgroupStats:
        """The usage of a cgroup at this moment. Never raises OSError."""
        usage = limit = working_set = available = swap = None
        stat: dict[str, int] = {}
        words = self._words
        if self._memory is not None:
            directory = self._memory.path(relative_dir)
            usage = read_number(f"{directory}/{words.usage}")
            stat = self._memory_stat.read(f"{directory}/memory.stat")
            limit = _limit(f"{directory}/{words.limit}")
            swap = self._swap(directory, usage, stat)
            if usage is not None and words.inactive_file in stat:
                working_set = max(0, usage - stat[words.inactive_file])
        if limit is not None and working_set is not None:
            available = max(0, limit - working_set)
        cpu_pressure, memory_pressure, io_pressure = self._pressures(relative_dir)
        return CgroupStats(
            read_at_ns=time.time_ns(),
            cpu_usage_ns=self.cpu_usage_ns(relative_dir),
            memory_usage_bytes=usage,
            working_set_bytes=working_set,
            rss_bytes=stat.get(words.rss),
            page_faults=stat.get(words.page_faults),
            major_page_faults=stat.get(words.major_page_faults),
            memory_limit_bytes=limit,
            memory_available_bytes=available,
            swap_usage_bytes=swap,
            pids_current=self._pids_current(relative_dir),
            cpu_pressure=cpu_pressure,
            memory_pressure=memory_pressure,
            io_pressure=io_pressure,
        )

    def cpu_usage_ns(self, relative_dir: str) -> int | None:
        """The CPU time of a cgroup since it was created. Never raises OSError."""
        if self._cpuacct is not None:
            return read_number(f"{self._cpuacct.path(relative_dir)}/cpuacct.usage")
        if self._unified is None:
            return None
        # v2 accounts CPU time in every cgroup, also where the cpu controller is not enabled.
        usage_us = _CPU_V2.read(f"{self._unified.path(relative_dir)}/cpu.stat").get("usage_usec")
        return None if usage_us is None else usage_us * 1000

    def _pids_current(self, relative_dir: str) -> int | None:
        if self._pids is None:
            return None
        return read_number(f"{self._pids.path(relative_dir)}/pids.current")

    def _pressures(self, relative_dir: str) -> tuple[Pressure | None, ...]:
        if self._unified is None:
            return None, None, None
        directory = self._unified.path(relative_dir)
        cpu = read_pressure(f"{directory}/cpu.pressure")
        if (
            cpu is None
        ):  # of a hybrid node: the cgroup may exist in v1 alone, and then has none of them
            return None, None, None
        return (
            cpu,
            read_pressure(f"{directory}/memory.pressure"),
            read_pressure(f"{directory}/io.pressure"),
        )

    def _swap(self, directory: str, usage: int | None, stat: dict[str, int]) -> int | None:
        if self._v1 and _SWAP_V1 in stat:
            return stat[_SWAP_V1]
        counter = read_number(f"{directory}/{self._words.swap}")
        if not self._v1:
            return counter
        # v1's memsw counter is memory plus swap, and is absent without swap accounting.
        if counter is None or usage is None:
            return None
        return max(0, counter - usage)


def oom_kills(layout: Layout, relative_dir: str) -> int | None:
    """The number of OOM kills in the cgroup, or None if the kernel does not count them.

    v1 counts kills in the cgroup itself, v2 also those in its descendants.
    """
    memory = layout.of_controller("memory")
    if memory is None:
        return None
    name = "memory.oom_control" if memory.version == 1 else "memory.events"
    return _OOM_KILLS.read(f"{memory.path(relative_dir)}/{name}").get("oom_kill")


def _limit(path: str) -> int | None:
    limit = read_number(path)
    return None if limit is None or limit >= UNLIMITED_BYTES else limit
