"""Plugins that a predecessor of this process left running.

When the daemon dies, a plugin it had called goes on as an orphan: it may finish an ADD after its successor has run the
DEL, and what it makes then is lost. So before the successor touches an attachment it didn't make, it lets such
plugins end. Rules: only programs in the configured plugin directories with this container's ID in their environment;
other runtimes' containers have other IDs. One that is still there at the deadline is killed, as its caller would have.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import DeadlineError
from cri_shim.host.process import kill_process, start_time_ticks
from cri_shim.kernel_call import in_time
from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import Sequence

log = structlog.get_logger()

_POLL_S = 0.02
KILL_GRACE_S = 5.0
WAITING = "waiting for plugins that a former daemon called"
_PROGRAM_WORDS = 4  # an interpreter, its flags, the script


async def wait_for_leftover_plugins(
    container_id: str, plugin_dirs: Sequence[Path], *, timeout_s: float
) -> None:
    """Return once no plugin works for this container; call it while nobody here starts one for it.

    Raises DeadlineError for one that outlives being killed.
    """
    with step(WAITING):
        await _wait(container_id, plugin_dirs, time.monotonic() + timeout_s)


async def _wait(container_id: str, plugin_dirs: Sequence[Path], give_up_at: float) -> None:
    told = False
    while left := await in_time(WAITING, leftover_plugins, container_id, plugin_dirs):
        if not told:
            log.info("waiting for plugins that an earlier process called", pids=sorted(left))
            told = True
        if time.monotonic() >= give_up_at + KILL_GRACE_S:
            raise DeadlineError(
                f"container {container_id}: CNI plugins of a former daemon, {sorted(left)}, still run "
                f"{KILL_GRACE_S:g} s after SIGKILL: they hang in the kernel (see /proc/PID/stack)"
            )
        if time.monotonic() >= give_up_at:
            log.warning("killing plugins that an earlier process called", pids=sorted(left))
            for pid, started in left.items():
                kill_process(pid, started)
        await asyncio.sleep(_POLL_S)


def leftover_plugins(container_id: str, plugin_dirs: Sequence[Path]) -> dict[int, int]:
    """Pid and start time (ticks) of each plugin at work for this container, zombies excluded; blocking."""
    wanted = f"CNI_CONTAINERID={container_id}".encode()
    directories = {os.fsencode(directory) for directory in plugin_dirs}
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        started = start_time_ticks(int(name))
        try:
            environment = Path("/proc", name, "environ").read_bytes()
            if started is None or wanted not in environment.split(b"\0"):
                continue
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile, or none of ours
        if any(os.path.dirname(word) in directories for word in words[:_PROGRAM_WORDS]):
            found[int(name)] = started
    return found
