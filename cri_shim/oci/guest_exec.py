"""Ending an exec inside a guest whose runtime can't: by one more exec, and by signals that are passed on.

kata-runtime 1.x kills containers only. To an exec it passes signals on, SIGKILL not among them, and it says no pid that
a process has in the guest. Rules:
- Each exec gets a variable of its own in its environment, `mark`, which what it starts inherits. Another exec finds
  all of them by it and kills them; it is the same user, with a shell of the container's own image.
- Where that has no shell, or does not answer, signals have to do that end a program which does not expect them. The
  shim passes these on; others (SIGQUIT, SIGABRT, ...) it takes for its own.
- What cleared its environment, or runs as another user, is not found. It ends with its container.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from cri_shim.host.pidfd import ends_of, kill_process, start_time_ticks
from cri_shim.host.proctree import family_of
from cri_shim.kernel_call import in_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cri_shim.oci.spec.inputs import Spec

VARIABLE: Final = "CRI_SHIM_EXEC"
KILLER_TIMEOUT_S = 5.0
"""For the exec that kills; on a slow guest one takes more than a second."""
KILLED_S = 1.0
"""How long a killed process may take to be seen as ended on the node."""
LAST_SIGNALS: Final = (
    (signal.SIGTERM, 1.0),
    (signal.SIGHUP, 0.2),
    (signal.SIGINT, 0.2),
    (signal.SIGXCPU, 0.2),
    (signal.SIGVTALRM, 0.2),
)
"""Each with the time that it has to end the process, in seconds."""
_SCRIPT = """
for round in 1 2 3; do
    found=
    for place in /proc/[0-9]*; do
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in *"$1"*) kill -KILL "${place#/proc/}" && found=1; break ;; esac
        done 2>/dev/null <"$place/environ"
    done
    [ -n "$found" ] || exit 0
done
"""
"""With builtins alone. A further round sees what was forked meanwhile, and those that it saw end."""

Standing = list[tuple[int, int]]


def mark(process_file: Path) -> str:
    """What finds an exec in its guest: a variable with the random name that its files have."""
    return f"{VARIABLE}={process_file.stem}"


def killer_of(process: Spec, marked: str) -> Spec:
    """The process that kills another exec and what that has started, given that one's process. Pure."""
    kept = {key: value for key, value in process.items() if key != "consoleSize"}
    return {
        **kept,
        "args": ["/bin/sh", "-c", _SCRIPT, "sh", marked],
        "env": [each for each in process["env"] if each != marked],
        "terminal": False,
    }


async def standing_for(host_pid: int) -> Standing:
    """The node's processes that stand for an exec, pid and start time: what its command waits for, or itself."""
    family, _ = await in_time("looking at an exec's processes", family_of, host_pid)
    standing = [(member.pid, member.start_ticks) for member in family.values() if not member.zombie]
    if not standing and (ticks := start_time_ticks(host_pid)) is not None:
        standing = [(host_pid, ticks)]
    return standing


async def have_ended(standing: Sequence[tuple[int, int]], timeout_s: float) -> bool:
    """Whether all have ended within `timeout_s` seconds."""
    return not await ends_of(standing, timeout_s)


async def end_by_signals(standing: Sequence[tuple[int, int]]) -> bool:
    """Send one signal after the other to be passed on, until all have ended; whether they have."""
    for number, patience_s in LAST_SIGNALS:
        for pid, start_ticks in standing:
            kill_process(pid, start_ticks, number)
        if await have_ended(standing, patience_s):
            return True
    return False
