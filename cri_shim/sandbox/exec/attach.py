"""Attach: what the streaming process needs to join a container's own streams, and what the daemon keeps of it.

Rules:
- The streaming process has one connection to a container's monitor, shared by all who are attached. It is made here,
  and the daemon keeps a descriptor of it, never reading.
- Stop, ReopenContainerLog and an exit need the monitor, which waits for whoever doesn't read. A connection that isn't
  read for a second, by the streaming process's own count, is broken off for them: that process may be what hangs.
- Pipes are made here, too: how much they may hold is bounded for those who may do less than the daemon.
- The size of a terminal goes through the monitor, the last one asked for: those between are nobody's any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CriShimError, WrongStateError, host_step
from cri_shim.oci.attach_pipes import MEMBER_BYTES, Pipes
from cri_shim.sandbox.store.model import ContainerState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.oci.conmon import Monitors
    from cri_shim.paths import Paths
    from cri_shim.sandbox.store.store import Container

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


@dataclass(eq=False, slots=True)
class _Connection:
    """Ours of the one that the streaming process reads."""

    socket: socket.socket
    packets_read: int = 0

    @property
    def has_unread(self) -> bool:
        """Whether the monitor waits for somebody to read, or may have to."""
        try:
            answer = fcntl.ioctl(self.socket, termios.FIONREAD, b"\0" * 4)
        except (OSError, ValueError):  # closed
            return False
        return bool(struct.unpack("i", answer)[0])

    def break_off(self) -> None:
        """Make the monitor forget it: that goes on at once. Who is attached is told as at the container's end."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class AttachSessions:
    """Which containers the streaming process is attached to."""

    def __init__(self, *, paths: Paths, monitors: Monitors, background: Background) -> None:
        self._paths = paths
        self._monitors = monitors
        self._background = background
        self._connections: dict[str, _Connection] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._looked_after: set[str] = set()
        self.ask_how_far: Callable[[str], None] = lambda _container_id: None
        """How the streaming process is asked how far it has read; it answers by `read_so_far`."""

    @property
    def connected(self) -> tuple[str, ...]:
        """The containers whose monitor has a connection."""
        return tuple(self._connections)

    @property
    def under_way(self) -> frozenset[str]:
        """The containers that are being told a size, or whose connection is looked after because it may be stuck."""
        return frozenset(self._sizes) | self._looked_after

    def packets_read(self, container_id: str) -> int:
        """How many of the connection's packets are known to be read. Raises KeyError."""
        return self._connections[container_id].packets_read

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

    # --- for the streaming process

    def connect(self, target: Attachable) -> int:
        """A descriptor of a new connection to the monitor, for the streaming process.

        Raises WrongStateError when the monitor is gone, CriShimError.
        """
        self.disconnected(target.container_id)  # it knows better than we do
        with host_step(f"container {target.container_id}: attach"):
            connection = self._monitors.connect_attach(target.bundle_dir)
            try:
                given = os.dup(connection.fileno())
            except OSError:
                connection.close()
                raise
        self._connections[target.container_id] = _Connection(connection)
        return given

    def disconnected(self, container_id: str) -> None:
        """The streaming process reads it no more."""
        connection = self._connections.pop(container_id, None)
        if connection is not None:
            connection.break_off()
            connection.socket.close()

    def all_disconnected(self) -> None:
        """The streaming process is gone."""
        for container_id in list(self._connections):
            self.disconnected(container_id)

    def read_so_far(self, container_id: str, packets: int) -> None:
        """The streaming process's word."""
        if (connection := self._connections.get(container_id)) is not None:
            connection.packets_read = packets

    def resize(self, target: Attachable, width: int, height: int) -> None:
        """Give the container's terminal a size, soon."""
        if not target.terminal:
            return
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

    # --- for whoever needs the monitor

    def unblock(self, container_id: str) -> None:
        """Somebody needs the monitor: see to it that it doesn't wait for us."""
        connection = self._connections.get(container_id)
        if connection is not None and container_id not in self._looked_after:
            self._looked_after.add(container_id)
            self._background.keep(
                f"unblock the monitor of {container_id}", self._unblock(container_id, connection)
            )

    async def _unblock(self, container_id: str, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOKED_AFTER_S
        before, since = connection.packets_read, loop.time()
        try:
            while self._connections.get(container_id) is connection and loop.time() < until:
                self.ask_how_far(container_id)
                await asyncio.sleep(LOOK_S)
                if connection.packets_read != before or not connection.has_unread:
                    before, since = connection.packets_read, loop.time()
                elif loop.time() - since >= STUCK_S:
                    log.warning(
                        "attached clients are cut off: their output is not read",
                        container_id=container_id,
                    )
                    connection.break_off()
                    return
        finally:
            self._looked_after.discard(container_id)


def make_pipes(target: Attachable, *, stdin: bool, stdout: bool, stderr: bool) -> Pipes:
    """For one who joins and wants these. Raises CriShimError (ResourceExhaustedError) without descriptors."""
    made: list[tuple[int, int]] = []

    def pipe(wanted: bool) -> tuple[int, int] | None:
        if not wanted:
            return None
        made.append(os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        fcntl.fcntl(made[-1][1], fcntl.F_SETPIPE_SZ, MEMBER_BYTES)
        return made[-1]

    try:
        with host_step(f"container {target.container_id}: attach: making its pipes"):
            # A terminal has one output.
            return Pipes(
                pipe(stdin and target.stdin), pipe(stdout), pipe(stderr and not target.terminal)
            )
    except BaseException:
        for ends in made:
            for fd in ends:
                os.close(fd)
        raise
