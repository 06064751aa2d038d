"""Finds and kills all descendants of a process.

For processes that no cgroup delimits: a monitor with its runtime command, or an exec'd process with its session.

Rules:
- Descendants are found through /proc/PID/task/TID/children (proc(5)), so that the cost depends on their number and not
  on the node's. Only on a kernel without CONFIG_PROC_CHILDREN all processes are scanned.
- An orphan is no descendant any more, but it is still in its session. Such strays are searched among the processes that
  the caller names, since the caller knows which process adopts orphans.
- A process is killed only if its parent or session shows that it belongs to the family, and through a pidfd whose start
  time matches. Zombies count as gone. Endings are awaited on pidfds.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from typing import TYPE_CHECKING

from cri_shim.host.pidfd import ends_of, kill_process
from cri_shim.host.procstat import ProcessEntry, names, process_entry
from cri_shim.kernel_call import in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_PARENT_PATIENCE_S = 1.0
"""How long killed members may take to end before their parent is killed as well."""
_WAITED_FOR = 64
"""Endings awaited at once, since each takes a descriptor. The next round finds those that still run."""
_MISSED = (FileNotFoundError, ProcessLookupError)


def process_table() -> dict[int, ProcessEntry]:
    """All processes. Blocking, about 20 µs for each: not for paths of ordinary life."""
    table: dict[int, ProcessEntry] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (entry := process_entry(int(name))) is not None:
            table[entry.pid] = entry
    return table


@functools.cache
def kernel_lists_children() -> bool:
    """Whether /proc names the children of each thread (CONFIG_PROC_CHILDREN)."""
    return os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def children_of(pid: int) -> list[int]:
    """The children of `pid`, including zombies; [] if it is gone. Blocking: one file for each thread of `pid`."""
    if not kernel_lists_children():
        return [entry.pid for entry in process_table().values() if entry.parent_pid == pid]
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except _MISSED:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += map(int, file.readall().split())
        except _MISSED:
            continue
    return found


def family_of(pid: int, strays: Iterable[int] = ()) -> tuple[dict[int, ProcessEntry], bool]:
    """The descendants of `pid`, including zombies, and the `strays` in its session with theirs. Blocking.

    `pid` itself is left out. The second value is False if a process came or went meanwhile, so that one may be missing.
    """
    lists = _Listed() if kernel_lists_children() else _Scanned(process_table())
    found: dict[int, ProcessEntry] = {}
    complete = True
    waiting = [pid]
    for stray in strays:
        if stray == pid or _session(stray) != pid:
            continue
        entry = process_entry(stray)
        if entry is not None and entry.session == pid:
            found[stray] = entry
            waiting.append(stray)
    while waiting:
        parent = waiting.pop()
        for child in lists.children_of(parent):
            if child == pid or child in found:
                continue
            entry = process_entry(child)
            if entry is None or entry.parent_pid != parent:
                complete = False
                continue
            found[child] = entry
            waiting.append(child)
    return found, complete


class _Listed:
    """Children from the kernel's lists."""

    def children_of(self, pid: int) -> Iterable[int]:
        return children_of(pid)


class _Scanned:
    """Children from one scan of all processes."""

    def __init__(self, table: Mapping[int, ProcessEntry]) -> None:
        self._children: dict[int, list[int]] = {}
        for entry in table.values():
            self._children.setdefault(entry.parent_pid, []).append(entry.pid)

    def children_of(self, pid: int) -> Iterable[int]:
        return self._children.get(pid, ())


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


async def kill_family(
    pid: int,
    start_ticks: int | None,
    *,
    timeout_s: float,
    strays: Callable[[], Iterable[int]] = tuple,
) -> bool:
    """Kill a process, its descendants and the `strays` in its session. Returns whether all ended within `timeout_s`.

    `strays` is called in a thread, once per round. The process is stopped with SIGSTOP first, so that it can neither
    report the death of a child nor fork meanwhile. The first process of a PID namespace ends only after a parent has
    collected the processes that were brought into it. So a stopped parent is killed when members do not end soon.
    """
    root = process_entry(pid)
    if root is None or (start_ticks is not None and root.start_ticks != start_ticks):
        return True
    kill_process(pid, root.start_ticks, signal.SIGSTOP)
    give_up_at = time.monotonic() + timeout_s
    late: set[int] = set()
    while True:
        killed, complete = await in_time("killing processes", _kill_members, pid, strays)
        left_s = give_up_at - time.monotonic()
        if complete and all(member.pid in late for member in killed):
            kill_process(pid, root.start_ticks)
            members = [(m.pid, m.start_ticks) for m in killed]
            return not await ends_of([(pid, root.start_ticks), *members], max(left_s, 0))
        if left_s <= 0:
            kill_process(pid, root.start_ticks)
            return False
        members = [(m.pid, m.start_ticks) for m in killed[:_WAITED_FOR]]
        late |= set(await ends_of(members, min(left_s, _PARENT_PATIENCE_S)))


def _kill_members(pid: int, strays: Callable[[], Iterable[int]]) -> tuple[list[ProcessEntry], bool]:
    """List the family once, and send SIGKILL to each running member.

    Returns those, and whether the list is complete.
    """
    family, complete = family_of(pid, strays())
    alive = [member for member in family.values() if not member.zombie]
    for member in alive:
        kill_process(member.pid, member.start_ticks)
    return alive, complete


def orphans_naming(word: str) -> list[ProcessEntry]:
    """Living processes that lost their parent and have `word` in their command line. Blocking.

    Orphans are children of this process, or of the ancestor that inherits those of a daemon that has ended. Only the
    children of these are looked at.
    """
    found = []
    for pid in {child for heir in _heirs() for child in children_of(heir)}:
        entry = process_entry(pid)
        if entry is not None and not entry.zombie and names(pid, word):
            found.append(entry)
    return found


def _heirs() -> list[int]:
    """This process and its ancestors, up to the first process that this one can see."""
    heirs = [os.getpid()]
    while heirs[-1] > 1 and (entry := process_entry(heirs[-1])) is not None:
        heirs.append(entry.parent_pid)
    return [heir for heir in heirs if heir > 0]
