"""What a daemon and its streaming process hold, from outside: descriptors, threads, processes, memory, sessions."""

from __future__ import annotations

import os
import re
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.harness import procs
from tests.integration.scene import wait_until

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

SETTLE_S = 10.0
"""Endings are asynchronous, and process 1 collects orphans late."""
POOL_THREADS = 2 * min(32, (os.cpu_count() or 1) + 4)
"""The pools of the two loops, which fill up as they are needed and then stay as they are."""
_SESSIONS = re.compile(r"^cri_shim_stream_sessions\{.*\} (\S+)$", re.MULTILINE)
_MEMORY = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one moment."""

    descriptors: Counter[str]
    threads: int
    processes: int
    sessions: int
    memory_mib: float

    @classmethod
    def of(cls, daemon: Daemon) -> Self:
        """As it is now."""
        pid = daemon.pid
        assert pid is not None
        both = (pid, *procs.streamers_of([pid]))
        memory = [_MEMORY.findall(Path(f"/proc/{one}/status").read_text()) for one in both]
        return cls(
            descriptors=Counter(each for one in both for each in procs.descriptors(str(one))),
            threads=sum(len(list(Path(f"/proc/{one}/task").iterdir())) for one in both),
            processes=len(procs.processes_of(daemon.name, {pid})) + len(both),
            sessions=sessions(daemon),
            memory_mib=sum(int(kib) for [kib] in memory) / 1024,
        )

    def more_in(self, other: Footprint) -> list[str]:
        """What the other has more of, but for memory."""
        more = {
            **(other.descriptors - self.descriptors),
            "threads": max(other.threads - self.threads - POOL_THREADS, 0),
            "processes": other.processes - self.processes,
            "sessions": other.sessions - self.sessions,
        }
        return [f"{number} more {name}" for name, number in more.items() if number > 0]


def sessions(daemon: Daemon) -> int:
    """Streaming sessions, as the daemon's metrics tell."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.metrics_port}/metrics") as page:
        return int(sum(map(float, _SESSIONS.findall(page.read().decode()))))


def assert_no_growth(daemon: Daemon, before: Footprint, *, memory_mib: float) -> None:
    """Nothing is left of what came since, and no more than so much memory."""
    now = Footprint.of(daemon)

    def settled() -> bool:
        nonlocal now
        now = Footprint.of(daemon)
        return not before.more_in(now) and now.memory_mib - before.memory_mib < memory_mib

    try:
        wait_until(settled, timeout_s=SETTLE_S)
    except TimeoutError:
        pass  # the assertion says what it was
    if left := before.more_in(now):
        raise AssertionError(f"the daemon has {', '.join(left)} than before")
    grown = now.memory_mib - before.memory_mib
    assert grown < memory_mib, f"the daemon has {grown:.1f} MiB more than before"
