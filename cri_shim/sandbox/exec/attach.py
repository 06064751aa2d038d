"""Attach: opens connections to monitors for the streaming process, and closes those that block their monitor.

Rules:
- The streaming process has one connection to a container's monitor, shared by all attached clients. The daemon opens
  it and keeps a duplicate of its descriptor, from which it never reads.
- Stop, ReopenContainerLog and an exit need the monitor, which blocks on a reader that does not read. Then the daemon
  shuts down a connection of which nothing was read for a second, as counted by the streaming process: that process
  itself may hang.
- The daemon creates the pipes of clients, because the kernel limits the pipe sizes of unprivileged users.
- Terminal sizes go to the monitor one at a time. Only the latest one is sent.
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
"""How long a connection is observed after somebody needed the monitor: longer than usual grace periods."""


@dataclass(frozen=True, slots=True)
class Attachable:
    """The properties of a container that attach needs."""

    container_id: str
    bundle_dir: Path
    terminal: bool
    stdin: bool
    stdin_once: bool


@dataclass(eq=False, slots=True)
class _Connection:
    """The daemon's duplicate of a connection that the streaming process reads."""

    socket: socket.socket
    packets_read: int = 0

    @property
    def has_unread(self) -> bool:
        """Whether there is output that nobody has read, on which the monitor may block."""
        try:
            answer = fcntl.ioctl(self.socket, termios.FIONREAD, b"\0" * 4)
        except (OSError, ValueError):  # closed
            return False
        return bool(struct.unpack("i", answer)[0])

    def break_off(self) -> None:
        """Shut the connection down, so that the monitor drops it at once. Clients see the end of the output."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class AttachSessions:
    """The containers that the streaming process is attached to."""

    def __init__(self, *, paths: Paths, monitors: Monitors, background: Background) -> None:
        self._paths = paths
        self._monitors = monitors
        self._background = background
        self._connections: dict[str, _Connection] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._looked_after: set[str] = set()
        self.ask_how_far: Callable[[str], None] = lambda _container_id: None
        """Asks the streaming process how much it has read. `read_so_far` takes the answer."""

    @property
    def connected(self) -> tuple[str, ...]:
        """The containers with an attach connection."""
        return tuple(self._connections)

    @property
    def under_way(self) -> frozenset[str]:
        """The containers whose terminal is being resized, or whose connection is observed because it may block."""
        return frozenset(self._sizes) | self._looked_after

    def packets_read(self, container_id: str) -> int:
        """The number of packets that the streaming process has read, as last reported. Raises KeyError."""
        return self._connections[container_id].packets_read

    def attachable(self, container: Container) -> Attachable:
        """The properties of a running container. Raises WrongStateError if it does not run."""
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
        """Connect to the monitor. Returns a descriptor of the connection for the streaming process.

        Raises WrongStateError if the monitor has ended, CriShimError.
        """
        # The streaming process asks for a connection only if it has none, so one that is on record here is stale.
        self.disconnected(target.container_id)
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
        """The streaming process has closed the connection: close the duplicate."""
        connection = self._connections.pop(container_id, None)
        if connection is not None:
            connection.break_off()
            connection.socket.close()

    def all_disconnected(self) -> None:
        """The streaming process has ended: close all duplicates."""
        for container_id in list(self._connections):
            self.disconnected(container_id)

    def read_so_far(self, container_id: str, packets: int) -> None:
        """The streaming process reports the number of packets that it has read."""
        if (connection := self._connections.get(container_id)) is not None:
            connection.packets_read = packets

    def resize(self, target: Attachable, width: int, height: int) -> None:
        """Resize the container's terminal in the background. Ignored for a container without a terminal."""
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
            log.debug(
                "cannot resize the terminal", container_id=target.container_id, error=str(error)
            )
        finally:
            del self._sizes[target.container_id]

    # --- for callers that need the monitor

    def unblock(self, container_id: str) -> None:
        """Observe the container's connection, and shut it down if it blocks the monitor, which a caller needs now."""
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
                        "attach connection closed: its output is not read, which blocks the monitor",
                        container_id=container_id,
                    )
                    connection.break_off()
                    return
        finally:
            self._looked_after.discard(container_id)


def make_pipes(target: Attachable, *, stdin: bool, stdout: bool, stderr: bool) -> Pipes:
    """Create the pipes of one attached client. Raises CriShimError; ResourceExhaustedError without free descriptors."""
    made: list[tuple[int, int]] = []

    def pipe(wanted: bool) -> tuple[int, int] | None:
        if not wanted:
            return None
        made.append(os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        fcntl.fcntl(made[-1][1], fcntl.F_SETPIPE_SZ, MEMBER_BYTES)
        return made[-1]

    try:
        with host_step(f"container {target.container_id}: attach: creating pipes"):
            # A terminal has a single output stream.
            return Pipes(
                pipe(stdin and target.stdin), pipe(stdout), pipe(stderr and not target.terminal)
            )
    except BaseException:
        for ends in made:
            for fd in ends:
                os.close(fd)
        raise
