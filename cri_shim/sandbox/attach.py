"""Attach: clients join a container's own streams, through the daemon's one connection to its monitor.

Rules:
- One `AttachClient` for each container while somebody is attached, on the streaming server's loop.
- Stop and ReopenContainerLog need the monitor, which waits for whoever doesn't read. A connection that isn't read for a
  second is broken off for them: looked at from the daemon's loop, since the other one may be what hangs.
- The size of a terminal goes through the monitor too, the last one asked for: those between are nobody's any more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CriShimError, WrongStateError
from cri_shim.oci.attach_client import AttachClient
from cri_shim.sandbox.model import ContainerState

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.oci.attach_client import Member
    from cri_shim.oci.conmon import Monitors
    from cri_shim.paths import Paths
    from cri_shim.sandbox.store import Container

log = structlog.get_logger()
STUCK_S = 1.0
LOOK_S = 0.1
LOOKED_AFTER_S = 600.0
"""A stop is over by then, with its grace period."""


@dataclass(frozen=True, slots=True)
class Attachable:
    """What has to be known of a container."""

    container_id: str
    bundle_dir: Path
    terminal: bool
    stdin: bool
    stdin_once: bool


class Attachments:
    """Who is attached to what."""

    def __init__(self, *, paths: Paths, monitors: Monitors, background: Background) -> None:
        self._paths = paths
        self._monitors = monitors
        self._background = background
        self._clients: dict[str, AttachClient] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._looked_after: set[str] = set()

    # --- on the daemon's loop

    def attachable(self, container: Container) -> Attachable:
        """Raises WrongStateError unless the container runs."""
        if container.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {container.id} is {container.state}, not running")
        config = container.config
        return Attachable(
            container.id,
            self._paths.container(container.id).bundle_dir,
            config.tty,
            config.stdin,
            config.stdin_once,
        )

    def resize(self, target: Attachable, width: int, height: int) -> None:
        """Give the container's terminal a size, soon."""
        busy = target.container_id in self._sizes
        self._sizes[target.container_id] = width, height
        if not busy:
            self._background.start(
                f"resize the terminal of {target.container_id}", self._resize(target)
            )

    async def _resize(self, target: Attachable) -> None:
        try:
            done = None
            while (size := self._sizes[target.container_id]) != done:
                await self._monitors.resize_terminal(target.bundle_dir, *size)
                done = size
        except (CriShimError, OSError) as error:
            log.debug("terminal not resized", container_id=target.container_id, error=str(error))
        finally:
            del self._sizes[target.container_id]

    def unblock(self, container_id: str) -> None:
        """Somebody needs the monitor: see to it that it doesn't wait for us."""
        client = self._clients.get(container_id)
        if client is not None and container_id not in self._looked_after:
            self._looked_after.add(container_id)
            self._background.keep(
                f"unblock the monitor of {container_id}", self._unblock(container_id, client)
            )

    async def _unblock(self, container_id: str, client: AttachClient) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOKED_AFTER_S
        before, since = client.packets_read, loop.time()
        try:
            while self._clients.get(container_id) is client and loop.time() < until:
                await asyncio.sleep(LOOK_S)
                if client.packets_read != before or not client.has_unread:
                    before, since = client.packets_read, loop.time()
                elif loop.time() - since >= STUCK_S:
                    log.warning(
                        "attached clients are cut off: their output is not read",
                        container_id=container_id,
                    )
                    client.break_off()
                    return
        finally:
            self._looked_after.discard(container_id)

    # --- on the server's loop

    def join(self, target: Attachable, *, stdin: bool, stdout: bool, stderr: bool) -> Member:
        """Attach one more client. Raises WrongStateError when the monitor is gone, CriShimError."""
        client = self._clients.get(target.container_id)
        if client is None:
            client = AttachClient(
                target.container_id,
                target.bundle_dir,
                stdin=target.stdin,
                stdin_once=target.stdin_once,
                on_end=lambda: self._forget(target.container_id),
            )
            client.open()
            self._clients[target.container_id] = client
        return client.join(stdin=stdin, stdout=stdout, stderr=stderr and not target.terminal)

    def _forget(self, container_id: str) -> None:
        self._clients.pop(container_id, None)
