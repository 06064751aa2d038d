"""Counts the processes of a cgroup, and the files and sockets that they have open.

Rules:
- Processes that end meanwhile are left out, and nothing raises.
- What runs in the cgroup decides how much there is to count: of each cgroup at most `MAX_CGROUPS` cgroups,
  and of its processes at most `MAX_PROCESSES` with `MAX_FILES` open files are looked at.
- Only names in /proc are read: none of it is a file of the container, and no process has to run for it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from typing import Final

from cri_shim.host.cgroups.control_files import read_file
from cri_shim.host.cgroups.directory import processes_in, subtree

MAX_CGROUPS: Final = 64
MAX_PROCESSES: Final = 1024
MAX_FILES: Final = 4096
_FILES_LIMIT = re.compile(rb"^Max open files +(\d+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcessCounters:
    """The processes of a cgroup."""

    processes: int
    open_files: int
    sockets: int


def process_counters(cgroup_dir: str, proc_dir: str = "/proc") -> ProcessCounters:
    """The processes in the cgroup at this path and below it. Synchronous: a directory for each process."""
    pids = _pids(cgroup_dir)
    files = sockets = 0
    for pid in pids[:MAX_PROCESSES]:
        if files >= MAX_FILES:
            break
        opened, connected = _files_of(f"{proc_dir}/{pid}/fd", MAX_FILES - files)
        files, sockets = files + opened, sockets + connected
    return ProcessCounters(len(pids), files, sockets)


def open_files_limit(pid: int, proc_dir: str = "/proc") -> int | None:
    """The soft limit of open files of a process; None if it has none, or has ended."""
    match = _FILES_LIMIT.search(read_file(f"{proc_dir}/{pid}/limits") or b"")
    return int(match[1]) if match else None


def _pids(cgroup_dir: str) -> list[int]:
    try:
        return [
            pid
            for directory in islice(subtree(cgroup_dir), MAX_CGROUPS)
            for pid in processes_in(directory)
        ]
    except OSError:
        return []


def _files_of(directory: str, most: int) -> tuple[int, int]:
    """How many files the process has open, and how many of them are sockets."""
    files = sockets = 0
    try:
        with os.scandir(directory) as entries:
            for entry in islice(entries, most):
                files += 1
                try:
                    sockets += os.readlink(entry.path).startswith("socket:")
                except OSError:  # closed meanwhile
                    pass
    except OSError:
        pass
    return files, sockets
