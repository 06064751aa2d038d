"""What a process and everything it started take: CPU time, and memory sampled while something runs.

Memory is the sum of PSS (a page that is shared counts in parts), so that a child that shares its parent's pages is not
counted twice. Sampling costs CPU time itself: not to be done where time is measured.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE_S = 0.02
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Peak:
    """The highest sum of PSS that was seen, and how much of that was the first process's."""

    mib: float = 0.0
    of_which_daemon_mib: float = 0.0


def cpu_s(pid: int) -> float:
    """User and system time of the process, its descendants, and those of them that were waited for."""
    return sum(map(own_cpu_s, family(pid)))


def own_cpu_s(pid: int) -> float:
    """User and system time of one process and of the children it waited for; 0 for one that is gone."""
    return sum(int(field) for field in _stat(pid)[11:15]) / _TICKS_PER_S


def family(pid: int) -> list[int]:
    """The process and its living descendants."""
    found = [pid]
    for parent in found:  # grows while it is read
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@contextmanager
def peak_memory(pid: int) -> Iterator[Peak]:
    """Sample while open."""
    peak = Peak()
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            each = [pss_mib(member) for member in family(pid)]
            if sum(each) > peak.mib:
                peak.mib, peak.of_which_daemon_mib = sum(each), each[0]

    sampler = threading.Thread(target=sample, name="sampler")
    sampler.start()
    try:
        yield peak
    finally:
        over.set()
        sampler.join()


def pss_mib(pid: int) -> float:
    """What one process takes; 0 for one that is gone."""
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
