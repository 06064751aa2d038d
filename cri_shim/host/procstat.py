"""One process as /proc/PID/stat and status tell of it (proc(5)).

Rules: the command's name stands in parentheses and may itself hold anything, so fields count from the last one; a
process that is gone is an answer, not an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One row of the process table."""

    pid: int
    parent_pid: int
    session: int
    start_ticks: int
    """Clock ticks since boot: with the pid, this names one process for good."""
    zombie: bool


def parse_stat(stat: bytes) -> ProcessEntry:
    """A row from the line of /proc/PID/stat; pure."""
    pid, rest = stat.split(b" ", 1)
    fields = rest[rest.rindex(b")") + 1 :].split()
    return ProcessEntry(
        pid=int(pid),
        parent_pid=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        zombie=fields[0] in (b"Z", b"X"),
    )


def process_entry(pid: int) -> ProcessEntry | None:
    """One process' row, or None if there is none."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return None


def pid_namespace_depth(pid: int) -> int | None:
    """How many PID namespaces below ours it lives: 0 for one beside us; None when the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    numbers = next(
        (line for line in status.splitlines() if line.startswith(b"NSpid:")), b"NSpid: 0"
    )
    return len(numbers.split()) - 2
