"""The process table, read in one pass, and killing whole families.

For what no cgroup delimits: a monitor with the runtime command below it, or an exec'd process with its session.
Rules: a pid is acted on only through a pidfd whose start time matches; zombies count as gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.host.pidfd import kill_process

if TYPE_CHECKING:
    from collections.abc import Mapping

_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One row of the process table."""

    pid: int
    parent_pid: int
    session: int
    start_ticks: int
    """Clock ticks since boot: with the pid, this names one process for good."""
    zombie: bool


def parse_stat(text: str) -> ProcessEntry:
    """A row from /proc/<pid>/stat; the command in parentheses may hold anything (proc(5))."""
    pid, rest = text.split(" ", 1)
    fields = rest[rest.rindex(")") + 2 :].split()
    return ProcessEntry(
        pid=int(pid),
        parent_pid=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        zombie=fields[0] in "ZX",
    )


def process_table() -> dict[int, ProcessEntry]:
    """Every process there is now. Blocking, about 20 µs a process."""
    table: dict[int, ProcessEntry] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (entry := process_entry(int(name))) is not None:
            table[entry.pid] = entry
    return table


def process_entry(pid: int) -> ProcessEntry | None:
    """One process' row, or None if there is none."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


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
