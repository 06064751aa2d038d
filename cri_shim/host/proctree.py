"""The process table, read in one pass, and killing whole families.

For what no cgroup delimits: a monitor with the runtime command below it, or an exec'd process with its session.
Rules: a pid is acted on only through a pidfd whose start time matches; zombies count as gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

from cri_shim.host.pidfd import kill_process
from cri_shim.host.procstat import ProcessEntry, process_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

_POLL_S = 0.005


def process_table() -> dict[int, ProcessEntry]:
    """Every process there is now. Blocking, about 20 µs a process."""
    table: dict[int, ProcessEntry] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (entry := process_entry(int(name))) is not None:
            table[entry.pid] = entry
    return table


def descendants(table: Mapping[int, ProcessEntry], pid: int) -> set[int]:
    """All below `pid` by parentage, without itself."""
    children: dict[int, list[int]] = {}
    for entry in table.values():
        children.setdefault(entry.parent_pid, []).append(entry.pid)
    found: set[int] = set()
    pending = [pid]
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def session_of(table: Mapping[int, ProcessEntry], leader: int) -> set[int]:
    """All processes in the session that `leader` leads."""
    return {entry.pid for entry in table.values() if entry.session == leader}


async def kill_family(pid: int, start_ticks: int | None, *, timeout_s: float) -> bool:
    """Kill a process, its session if it leads one, and everything below it; True once all are gone.

    The root is stopped first, so that it can neither report a killed child nor fork while its family dies.
    """
    root = process_entry(pid)
    if root is None or (start_ticks is not None and root.start_ticks != start_ticks):
        return True
    kill_process(pid, root.start_ticks, signal.SIGSTOP)
    deadline = time.monotonic() + timeout_s
    while True:
        table = process_table()
        family = (descendants(table, pid) | session_of(table, pid)) - {pid}
        alive = [table[member] for member in family if not table[member].zombie]
        for entry in alive:
            kill_process(entry.pid, entry.start_ticks)
        if not alive:
            kill_process(pid, root.start_ticks)
            current = table.get(pid)
            if current is None or current.start_ticks != root.start_ticks or current.zombie:
                return True
        if time.monotonic() > deadline:
            kill_process(pid, root.start_ticks)
            return False
        await asyncio.sleep(_POLL_S)
