"""Reads /proc/PID/stat and /proc/PID/status (proc(5)).

Rules:
- The command name in `stat` is in parentheses and may contain any character, parentheses included. So fields are
  counted from the last `)`.
- A process that is gone is a result, not an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MAX_STAT_BYTES = 4096
"""The line has 52 numbers and a name of at most 64 bytes, some hundred bytes, which one read(2) returns whole."""


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """A process's row in the process table."""

    pid: int
    parent_pid: int
    session: int
    start_ticks: int
    """Clock ticks since boot. Together with the pid this identifies one process of one boot."""
    zombie: bool


def parse_stat(stat: bytes) -> ProcessEntry:
    """Parse the line of /proc/PID/stat. Pure."""
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
    """The row of process `pid`, or None if there is no such process."""
    # Plain os calls instead of an io object: this runs several times in each CRI call.
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
    """The number of PID namespaces between ours and the process's: 0 for our own; None if the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    numbers = next(
        (line for line in status.splitlines() if line.startswith(b"NSpid:")), b"NSpid: 0"
    )
    return len(numbers.split()) - 2


def names(pid: int, word: str) -> bool:
    """Whether the process has `word` somewhere in its command line."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return word.encode() in file.read()
    except OSError:
        return False
