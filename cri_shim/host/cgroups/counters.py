"""Reads what `usage` leaves out of a cgroup: throttling, kinds of memory, disks, huge pages, limits.

Rules: as `usage`, and what the node does not count has no entry. Names are those of v2's files where it has them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri_shim.host.cgroups.control_files import Pairs, read_file, read_number
from cri_shim.host.cgroups.usage import oom_kills

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from cri_shim.host.cgroups.layout import Hierarchy, Layout

_NS_PER_TICK: Final = 10_000_000
"""cpuacct.stat counts in USER_HZ, which is 100 on every architecture of Linux that runs containers."""
_CPU_V1 = Pairs(["nr_periods", "nr_throttled", "throttled_time"])
_CPU_V2 = Pairs(["nr_periods", "nr_throttled", "throttled_usec", "user_usec", "system_usec"])
_CPUACCT = Pairs(["user", "system"])
_MEMORY_V1 = Pairs(["total_cache", "total_mapped_file", "pgfault", "pgmajfault"])
_KERNEL_PARTS: Final = ("kernel_stack", "pagetables", "percpu", "slab", "vmalloc")
"""Their sum, where the kernel is older than 5.18 and has no line `kernel`."""
_MEMORY_V2 = Pairs(["file", "file_mapped", "pgfault", "pgmajfault", "kernel", *_KERNEL_PARTS])
_IO_V1 = re.compile(rb"^(\d+):(\d+) (Read|Write) (\d+)$", re.MULTILINE)
_IO_V2 = re.compile(rb"^(\d+):(\d+) rbytes=(\d+) wbytes=(\d+) rios=(\d+) wios=(\d+)", re.MULTILINE)


@dataclass(slots=True)
class DeviceIo:
    """What passed between a cgroup and one block device."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class HugePages:
    """Huge pages of one size that a cgroup uses, in bytes. `most_bytes` is 0 in v2, which does not keep it."""

    size: str
    used_bytes: int
    most_bytes: int


@dataclass(frozen=True, slots=True)
class CgroupCounters:
    """Further counters of a cgroup."""

    numbers: Mapping[str, int] = field(default_factory=dict)
    """Nanoseconds, bytes and counts by name; what the node does not count is missing."""
    devices: Mapping[tuple[int, int], DeviceIo] = field(default_factory=dict)
    """By major and minor number."""
    huge_pages: tuple[HugePages, ...] = ()


class CounterReader:
    """Reads the counters of this node's cgroups."""

    def __init__(self, layout: Layout, page_sizes: Sequence[str]) -> None:
        """`page_sizes` are those of huge pages, as `huge_page_sizes` finds them."""
        self._layout = layout
        self._cpu = layout.of_controller("cpu") or layout.unified
        self._cpuacct = layout.of_controller("cpuacct")
        self._memory = layout.of_controller("memory")
        self._pids = layout.of_controller("pids")
        self._io = layout.of_controller("io")
        self._blkio = layout.of_controller("blkio")
        self._hugetlb = layout.of_controller("hugetlb")
        self._page_sizes = tuple(page_sizes)

    def read(self, relative_dir: str) -> CgroupCounters:
        """The counters of a cgroup at this moment. Never raises OSError."""
        numbers: dict[str, int | None] = {
            **self._cpu_numbers(relative_dir),
            **self._memory_numbers(relative_dir),
            "oom_kill": oom_kills(self._layout, relative_dir),
            **self._pids_numbers(relative_dir),
        }
        return CgroupCounters(
            {name: number for name, number in numbers.items() if number is not None},
            self._devices(relative_dir),
            tuple(self._huge_pages(relative_dir)),
        )

    def _cpu_numbers(self, relative_dir: str) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        if self._cpu is not None and self._cpu.version == 2:
            stat = _CPU_V2.read(f"{self._cpu.path(relative_dir)}/cpu.stat")
            for ours, theirs in (
                *(("user_ns", "user_usec"), ("system_ns", "system_usec")),
                ("throttled_ns", "throttled_usec"),
            ):
                found[ours] = stat[theirs] * 1000 if theirs in stat else None
        elif self._cpu is not None:
            stat = _CPU_V1.read(f"{self._cpu.path(relative_dir)}/cpu.stat")
            found["throttled_ns"] = stat.get("throttled_time")
        else:
            stat = {}
        found["nr_periods"], found["nr_throttled"] = (
            stat.get("nr_periods"),
            stat.get("nr_throttled"),
        )
        if self._cpuacct is not None:
            ticks = _CPUACCT.read(f"{self._cpuacct.path(relative_dir)}/cpuacct.stat")
            for name, count in ticks.items():
                found[f"{name}_ns"] = count * _NS_PER_TICK
        return found

    def _memory_numbers(self, relative_dir: str) -> dict[str, int | None]:
        if self._memory is None:
            return {}
        directory = self._memory.path(relative_dir)
        if self._memory.version == 1:
            stat = _MEMORY_V1.read(f"{directory}/memory.stat")
            return {
                "file": stat.get("total_cache"),
                "file_mapped": stat.get("total_mapped_file"),
                "pgfault": stat.get("pgfault"),
                "pgmajfault": stat.get("pgmajfault"),
                "kernel": read_number(f"{directory}/memory.kmem.usage_in_bytes"),
                "peak": read_number(f"{directory}/memory.max_usage_in_bytes"),
                "failcnt": read_number(f"{directory}/memory.failcnt"),
                "min": read_number(f"{directory}/memory.soft_limit_in_bytes"),
            }
        stat = _MEMORY_V2.read(f"{directory}/memory.stat")
        kernel = stat.get("kernel")
        if kernel is None and stat:
            kernel = sum(stat.get(name, 0) for name in _KERNEL_PARTS)
        return {
            **{name: stat.get(name) for name in ("file", "file_mapped", "pgfault", "pgmajfault")},
            "kernel": kernel,
            "peak": read_number(f"{directory}/memory.peak"),
            "min": read_number(f"{directory}/memory.min"),
        }

    def _pids_numbers(self, relative_dir: str) -> dict[str, int | None]:
        if self._pids is None:
            return {}
        return {"pids_max": read_number(f"{self._pids.path(relative_dir)}/pids.max")}

    def _devices(self, relative_dir: str) -> dict[tuple[int, int], DeviceIo]:
        found: dict[tuple[int, int], DeviceIo] = {}
        if self._blkio is not None:
            directory = self._blkio.path(relative_dir)
            for name, read, written in (
                ("io_service_bytes", "read_bytes", "written_bytes"),
                ("io_serviced", "reads", "writes"),
            ):
                # Older kernels lack the file that counts what is below as well.
                file = f"{directory}/blkio.throttle.{name}"
                text = read_file(f"{file}_recursive") or read_file(file) or b""
                for major, minor, operation, amount in _IO_V1.findall(text):
                    device = found.setdefault((int(major), int(minor)), DeviceIo())
                    setattr(device, read if operation == b"Read" else written, int(amount))
        elif self._io is not None:
            text = read_file(f"{self._io.path(relative_dir)}/io.stat") or b""
            for major, minor, *amounts in _IO_V2.findall(text):
                found[int(major), int(minor)] = DeviceIo(*(int(amount) for amount in amounts))
        return found

    def _huge_pages(self, relative_dir: str) -> Iterable[HugePages]:
        for size in self._page_sizes:
            yield from _huge_pages_of(self._hugetlb, relative_dir, size)


def _huge_pages_of(hugetlb: Hierarchy | None, relative_dir: str, size: str) -> Iterable[HugePages]:
    if hugetlb is None:
        return
    file = f"{hugetlb.path(relative_dir)}/hugetlb.{size}"
    v1 = hugetlb.version == 1
    used = read_number(f"{file}.usage_in_bytes" if v1 else f"{file}.current")
    if used is not None:
        most = read_number(f"{file}.max_usage_in_bytes") if v1 else None
        yield HugePages(size, used, most or 0)


def huge_page_sizes(root: Path) -> Iterable[str]:
    """The sizes of huge pages as the files of the controller are named: `2MB`, `1GB`. `root` takes the place of /."""
    try:
        names = sorted(os.listdir(root / "sys/kernel/mm/hugepages"))
    except OSError:
        return
    for name in names:
        if match := re.fullmatch(r"hugepages-(\d+)kB", name):
            size, unit = int(match[1]), 0
            while size >= 1024 and unit < 2:
                size, unit = size // 1024, unit + 1
            yield f"{size}{('KB', 'MB', 'GB')[unit]}"
