"""Plugins that a predecessor of this process left running.

When the daemon dies, a plugin it had called goes on as an orphan: it may finish an ADD after its successor has run the
DEL, and what it makes then is lost. So before the successor touches an attachment it didn't make, it lets such
plugins end.

Rules:
- Only programs in the configured plugin directories count, with a container's ID in their environment; other runtimes'
  containers have other IDs.
- All processes are looked at once, for all containers. Whoever waits is woken by pidfds; only a container that had such
  a plugin is looked for again after its end, since the plugin may have left a helper that still works.
- One that is still there at the deadline is killed, as its caller would have.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import DeadlineError
from cri_shim.host.pidfd import ends_of, start_time_ticks
from cri_shim.host.proctree import kill_family
from cri_shim.kernel_call import in_time
from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = structlog.get_logger()

KILL_GRACE_S = 5.0
WAITING = "waiting for plugins that a former daemon called"
_LOOKING = "looking for plugins that a former daemon called"
_PROGRAM_WORDS = 4  # an interpreter, its flags, the script
_CONTAINER_ID = b"CNI_CONTAINERID="


class LeftoverPlugins:
    """What a former daemon's plugins still work on, by container ID; on the loop's thread only."""

    def __init__(self, plugin_dirs: Sequence[Path]) -> None:
        self._plugin_dirs = tuple(plugin_dirs)
        self._found: dict[str, dict[int, int]] | None = None
        self._looking = asyncio.Lock()

    async def find(self) -> None:
        """Look at every process, once: later calls do nothing. Call it before this process starts plugins itself.

        Raises DeadlineError when the kernel does not answer.
        """
        async with self._looking:
            if self._found is None:
                found = await in_time(_LOOKING, plugins_at_work, self._plugin_dirs)
                for container_id, plugins in found.items():
                    log.info(
                        "plugins that an earlier process called still run",
                        container_id=container_id,
                        pids=sorted(plugins),
                    )
                self._found = found

    def at_work(self, container_id: str) -> bool:
        """Whether one was found for this container whose end nobody has waited for yet; False before `find`."""
        return container_id in (self._found or {})

    def containers(self) -> list[str]:
        """Those that `at_work` is true for."""
        return list(self._found or {})

    async def end(self, container_id: str) -> None:
        """Kill those of this container and return once they are gone. Raises as `wait`."""
        await self.wait(container_id, timeout_s=0)

    async def wait(self, container_id: str, *, timeout_s: float) -> None:
        """Return once no plugin of a former daemon works for this container; after `timeout_s` seconds, kill it.

        Call it while nobody here starts a plugin for that container. Raises DeadlineError for one that outlives being
        killed.
        """
        await self.find()
        assert self._found is not None  # noqa: S101 - `find` has set it
        kill_at = time.monotonic() + timeout_s
        while plugins := self._found.get(container_id):
            with step(WAITING):
                await _end_of(container_id, plugins, kill_at)
            left = await in_time(_LOOKING, plugins_at_work, self._plugin_dirs, container_id)
            if container_id in left:
                self._found[container_id] = left[container_id]
            else:
                self._found.pop(container_id, None)


async def _end_of(container_id: str, plugins: Mapping[int, int], kill_at: float) -> None:
    left = await ends_of(plugins.items(), max(kill_at - time.monotonic(), 0))
    if not left:
        return
    log.warning(
        "killing plugins that an earlier process called", container_id=container_id, pids=left
    )
    # With all below them: a helper that isn't a plugin itself must not go on either.
    killed = [await kill_family(pid, plugins[pid], timeout_s=KILL_GRACE_S) for pid in left]
    if not all(killed):
        raise DeadlineError(
            f"container {container_id}: CNI plugins of a former daemon, {left}, still run "
            f"{KILL_GRACE_S:g} s after SIGKILL: they hang in the kernel (see /proc/PID/stack)"
        )


def plugins_at_work(
    plugin_dirs: Sequence[Path], container_id: str | None = None
) -> dict[str, dict[int, int]]:
    """Pid and start time (ticks) of each plugin at work, by container ID; zombies excluded. Blocking.

    With `container_id`, only that one's.
    """
    directories = {os.fsencode(directory) for directory in plugin_dirs}
    found: dict[str, dict[int, int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        started = start_time_ticks(int(name))
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            if not any(os.path.dirname(word) in directories for word in words[:_PROGRAM_WORDS]):
                continue
            environment = Path("/proc", name, "environ").read_bytes().split(b"\0")
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile, or none of ours
        for variable in environment:
            if started is not None and variable.startswith(_CONTAINER_ID):
                of = os.fsdecode(variable.removeprefix(_CONTAINER_ID))
                if container_id in (None, of):
                    found.setdefault(of, {})[int(name)] = started
    return found
