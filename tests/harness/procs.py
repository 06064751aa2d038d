"""Processes, descriptors and links as the kernel shows them: the part of a snapshot that reads /proc.

A process is ours if it descends from this test process or a daemon, names the session's token in its arguments or its
cgroup, or lives in the mount or network namespace that the test session made for itself.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

PROC = Path("/proc")
STREAMER = "cri_shim.streamer.process"
PF_KTHREAD = 0x00200000
_INODE = re.compile(r"^([a-z_]+):\[\d+\]$")


@dataclass(frozen=True, slots=True)
class Process:
    """One process; pid and start time together are never reused."""

    pid: int
    start_ticks: int
    parent: int
    zombie: bool
    kernel_thread: bool
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}, parent {self.parent}, started {self.start_ticks})"


def processes_of(
    token: str,
    daemons: Collection[int],
    namespaces: frozenset[str] = frozenset(),
    among: Collection[Process] | None = None,
) -> list[Process]:
    """Our processes, zombies included; not this one, and not the daemons themselves with their streaming processes.

    A zombie of process 1 is not ours any more: that collects it in its own time, on some machines seconds later.
    """
    among = all_processes() if among is None else among
    everyone = {process.pid: process for process in among}
    roots = {os.getpid(), *daemons}
    ours = set(roots)
    for pid, process in everyone.items():
        if not process.kernel_thread and (_mentions(pid, token) or namespaces_of(pid) & namespaces):
            ours.add(pid)
    grown = True
    while grown:
        children = {p.pid for p in among if p.parent in ours} - ours
        ours |= children
        grown = bool(children)
    found = [
        everyone[pid] for pid in ours - roots - streamers_of(daemons, among) if pid in everyone
    ]
    return [process for process in found if not (process.zombie and process.parent == 1)]


def streamers_of(daemons: Collection[int], among: Collection[Process] | None = None) -> set[int]:
    """The streaming processes of these daemons; one that outlived its daemon is not among them."""
    among = all_processes() if among is None else among
    return {p.pid for p in among if p.parent in daemons and STREAMER in p.command}


def processes_naming(token: str) -> list[Process]:
    """Processes with the token in their arguments or cgroup, except this one."""
    return [p for p in all_processes() if p.pid != os.getpid() and _mentions(p.pid, token)]


def descriptors(pid: str) -> list[str]:
    """The targets of a process's open descriptors, without numbers that differ between runs."""
    found = []
    directory = f"{PROC}/{pid}/fd"
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, ProcessLookupError):
        return []
    for name in names:
        try:
            target = os.readlink(f"{directory}/{name}")
        except (FileNotFoundError, ProcessLookupError):
            continue
        match = _INODE.match(target)
        found.append(match.group(1) if match else re.sub(r"^/proc/\d+", "/proc/PID", target))
    return found


def used_and_waited_s(pid: int | str) -> tuple[float, float]:
    """How long its main thread, or that of `thread-self`, has had a processor, and was ready to run and had none."""
    used_ns, waited_ns, _ = (PROC / str(pid) / "schedstat").read_text().split()
    return int(used_ns) / 1e9, int(waited_ns) / 1e9


def link_names() -> list[str]:
    """The network interfaces of this thread's network namespace."""
    return [name for _, name in socket.if_nameindex()]


def all_processes() -> list[Process]:
    """All processes of the machine. Functions with `among` take this list, so that it is read once."""
    found = (read_process(int(name)) for name in os.listdir(PROC) if name.isdigit())
    return [process for process in found if process is not None]


def read_process(pid: int) -> Process | None:
    """The present state of a process, or None if it does not exist."""
    try:
        stat = _read(pid, "stat").decode(errors="replace")
        # The name stands in parentheses and may hold any character; fields are counted after the last one.
        comm = stat[stat.index("(") + 1 : stat.rindex(")")]
        fields = stat[stat.rindex(")") + 2 :].split()
        kernel_thread = bool(int(fields[6]) & PF_KTHREAD)
        command = b"" if kernel_thread else _read(pid, "cmdline").replace(b"\0", b" ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(
        pid=pid,
        parent=int(fields[1]),
        start_ticks=int(fields[19]),
        zombie=fields[0] in "ZX",
        kernel_thread=kernel_thread,
        command=command.decode(errors="replace")[:300] or f"[{comm}]",
    )


def _read(pid: int, name: str) -> bytes:
    # Plain strings: thousands of these are read around each test.
    with open(f"{PROC}/{pid}/{name}", "rb", buffering=0) as file:
        return file.read()


def _mentions(pid: int, token: str) -> bool:
    wanted = token.encode()
    for name in ("cmdline", "cgroup"):
        try:
            if wanted in _read(pid, name):
                return True
        except OSError:
            return False
    return False


def namespaces_of(pid: int | str) -> set[str]:
    """The mount and network namespaces of a process. Empty if it has ended or is not accessible."""
    found = set()
    for kind in ("mnt", "net"):
        try:
            found.add(os.readlink(f"{PROC}/{pid}/ns/{kind}"))
        except OSError:
            # Ended meanwhile, or a zombie: those are found by their parents.
            pass
    return found
