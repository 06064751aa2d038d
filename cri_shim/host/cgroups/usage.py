"""Reads the resource usage of a cgroup.

Rules:
- A missing controller, file or line is None in its field, never an exception: cgroups vanish while they are read, and
  nodes differ in their controllers.
- Functions are synchronous and take microseconds per file. For many containers the caller uses a thread.
- The files are described in the kernel's Documentation/admin-guide: cgroup-v2.rst, cgroup-v1/memory.rst, cpuacct.rst.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.cgroups.layout import Hierarchy, Layout

UNLIMITED_BYTES = 1 << 62
"""v1 shows an absent limit as the largest number of pages, just below 2**63 bytes."""
_MAX_FILE_BYTES = 1 << 16


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


def read_stats(layout: Layout, relative_dir: str) -> CgroupStats:
    """The usage of a cgroup at this moment. Never raises OSError."""
    memory = layout.of_controller("memory")
    usage = limit = working_set = swap = None
    stat: dict[str, int] = {}
    words = _MEMORY_V1
    if memory is not None:
        words = _MEMORY_V1 if memory.version == 1 else _MEMORY_V2
        directory = memory.directory(relative_dir)
        usage = _read_number(directory / words.usage)
        limit = _limit(directory / words.limit)
        stat = read_pairs(directory / "memory.stat")
        swap = _swap(_read_number(directory / words.swap), usage, stat, version=memory.version)
        if usage is not None and words.inactive_file in stat:
            working_set = max(0, usage - stat[words.inactive_file])
    available = None
    if limit is not None and working_set is not None:
        available = max(0, limit - working_set)
    pids = layout.of_controller("pids")
    return CgroupStats(
        read_at_ns=time.time_ns(),
        cpu_usage_ns=_cpu_usage_ns(layout, relative_dir),
        memory_usage_bytes=usage,
        working_set_bytes=working_set,
        rss_bytes=stat.get(words.rss),
        page_faults=stat.get(words.page_faults),
        major_page_faults=stat.get(words.major_page_faults),
        memory_limit_bytes=limit,
        memory_available_bytes=available,
        swap_usage_bytes=swap,
        pids_current=_number_of(pids, relative_dir, "pids.current"),
    )


def oom_kills(layout: Layout, relative_dir: str) -> int | None:
    """The number of OOM kills in the cgroup, or None if the kernel does not count them.

    v1 counts kills in the cgroup itself, v2 also those in its descendants.
    """
    memory = layout.of_controller("memory")
    if memory is None:
        return None
    name = "memory.oom_control" if memory.version == 1 else "memory.events"
    return read_pairs(memory.directory(relative_dir) / name).get("oom_kill")


def read_pairs(path: Path) -> dict[str, int]:
    """The pairs of a file of `name number` lines. Other lines are ignored; {} if the file is gone."""
    pairs: dict[str, int] = {}
    for line in (_read(path) or b"").splitlines():
        name, _, number = line.partition(b" ")
        if number.isdigit():
            pairs[name.decode("ascii", "replace")] = int(number)
    return pairs


def _cpu_usage_ns(layout: Layout, relative_dir: str) -> int | None:
    accounting = layout.of_controller("cpuacct")
    if accounting is not None:
        return _number_of(accounting, relative_dir, "cpuacct.usage")
    if layout.unified is None:
        return None
    # v2 accounts CPU time in every cgroup, also where the cpu controller is not enabled.
    usage_us = read_pairs(layout.unified.directory(relative_dir) / "cpu.stat").get("usage_usec")
    return None if usage_us is None else usage_us * 1000


def _swap(
    counter: int | None, usage: int | None, stat: dict[str, int], *, version: int
) -> int | None:
    if version == 2:
        return counter
    # v1's memsw counter is memory plus swap, and is absent without swap accounting. memory.stat may have swap itself.
    if "total_swap" in stat:
        return stat["total_swap"]
    if counter is None or usage is None:
        return None
    return max(0, counter - usage)


def _limit(path: Path) -> int | None:
    limit = _read_number(path)  # v2 shows "max" for no limit, which reads as None
    return None if limit is None or limit >= UNLIMITED_BYTES else limit


def _number_of(hierarchy: Hierarchy | None, relative_dir: str, name: str) -> int | None:
    if hierarchy is None:
        return None
    return _read_number(hierarchy.directory(relative_dir) / name)


def _read_number(path: Path) -> int | None:
    text = (_read(path) or b"").strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> bytes | None:
    # A single read(2) returns these files whole.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _MAX_FILE_BYTES)
    except OSError:  # ENODEV: the cgroup was removed after the open
        return None
    finally:
        os.close(fd)
