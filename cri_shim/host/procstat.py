"""One process as /proc/PID/stat and status tell of it (proc(5)).

Rules: the command's name stands in parentheses and may itself hold anything, so fields count from the last one; a
process that is gone is an answer, not an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MAX_STAT_BYTES = 4096
"""The kernel writes the line at once; 52 numbers and a name of at most 64 bytes are some hundred."""


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
    # Three calls and no object of io's: each call of a pod's life asks several times.
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = os.read(fd, _MAX_STAT_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return parse_stat(line)


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
