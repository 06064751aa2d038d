"""Plugins that a former daemon left running.

When the daemon dies, a plugin that it called goes on as an orphan. It may finish an ADD after the next daemon has run
the DEL, and nothing would ever remove what it makes then. So before this daemon touches an attachment of a former one,
it waits for such plugins.

Rules:
- Only programs in the configured plugin directories count, with a container's ID in their environment. Containers of
  other runtimes have other IDs.
- All processes are scanned once, for all containers. Waiters use pidfds. A container that had such a plugin is scanned
  for again after the plugin's end, since it may have left a helper that still works.
- A plugin that still runs at the deadline is killed, as its caller would have done.
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
_PROGRAM_WORDS = 4  # of the command line: an interpreter, its flags, the script
_CONTAINER_ID = b"CNI_CONTAINERID="


class LeftoverPlugins:
    """The running plugins of former daemons, by container ID. Use it on the event loop's thread."""

    def __init__(self, plugin_dirs: Sequence[Path]) -> None:
        self._plugin_dirs = tuple(plugin_dirs)
        self._found: dict[str, dict[int, int]] | None = None
        self._looking = asyncio.Lock()

    async def find(self) -> None:
        """Scan all processes, once: later calls do nothing. Call it before this process starts plugins itself.

        Raises DeadlineError when the kernel does not answer.
        """
        async with self._looking:
            if self._found is None:
                found = await in_time(_LOOKING, plugins_at_work, self._plugin_dirs)
                for container_id, plugins in found.items():
                    log.info(
                        "plugins of a former daemon still run",
                        container_id=container_id,
                        pids=sorted(plugins),
                    )
                self._found = found

    def at_work(self, container_id: str) -> bool:
        """Whether a plugin was found for this container that nobody has waited for yet; False before `find`."""
        return container_id in (self._found or {})

    def containers(self) -> list[str]:
        """The containers for which `at_work` is true."""
        return list(self._found or {})

    async def end(self, container_id: str) -> None:
        """Kill this container's plugins, and return when they are gone. Raises as `wait`."""
        await self.wait(container_id, timeout_s=0)

    async def wait(self, container_id: str, *, timeout_s: float) -> None:
        """Return when no plugin of a former daemon works for this container. Kills those left after `timeout_s`.

        Call it while nothing here starts a plugin for that container. Raises DeadlineError for a plugin that survives
        SIGKILL.
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
    log.warning("killing plugins of a former daemon", container_id=container_id, pids=left)
    # With their descendants: a helper that is no plugin itself must not go on either.
    killed = [await kill_family(pid, plugins[pid], timeout_s=KILL_GRACE_S) for pid in left]
    if not all(killed):
        raise DeadlineError(
            f"container {container_id}: CNI plugins of a former daemon, {left}, still run "
            f"{KILL_GRACE_S:g} s after SIGKILL: they hang in the kernel (see /proc/PID/stack)"
        )


def plugins_at_work(
    plugin_dirs: Sequence[Path], container_id: str | None = None
) -> dict[str, dict[int, int]]:
    """Pid and start time (ticks) of each running plugin, by container ID; without zombies. Blocking.

    With `container_id`, only this container's.
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
            continue  # the process is gone, or belongs to another user
        for variable in environment:
            if started is not None and variable.startswith(_CONTAINER_ID):
                of = os.fsdecode(variable.removeprefix(_CONTAINER_ID))
                if container_id in (None, of):
                    found.setdefault(of, {})[int(name)] = started
    return found
