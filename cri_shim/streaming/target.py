"""One forwarded connection: its socket into the pod, what waits for it, and how its halves end.

Rules: both halves end on their own; what the target doesn't take is held, and what it costs is counted by the session.
What the client has no room for is not read.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Protocol

from cri_shim.streaming.backlog import Backlog

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer


class Carrier(Protocol):
    """The session it belongs to."""

    held: int
    """What it costs to keep what the targets haven't taken, in bytes."""
    stalled: dict[Target, None]
    """Targets that have something to say while the client doesn't take what there is, in their order."""

    @property
    def is_full(self) -> bool:
        """Whether the client has still to take what it was sent."""

    def room(self, connection_id: int) -> int:
        """How much the client takes of what the target says; while it is nothing, `go_on` comes once it is more."""

    def send(self, connection_id: int, data: Buffer) -> None:
        """Send what the target said."""

    def taken(self, connection_id: int, n_bytes: int) -> None:
        """The target took so much."""

    def target_ended(self, target: Target) -> None:
        """It has no more to say."""

    def target_over(self, target: Target) -> None:
        """Both halves are."""

    def target_reset(self, target: Target) -> None:
        """It is gone."""


class Target:
    """One connection: its socket, once it is there, and what waits for it."""

    __slots__ = (
        "_backlog",
        "_client_ended",
        "_loop",
        "_reading",
        "_session",
        "_socket",
        "_target_ended",
        "_writing",
        "id",
        "last_taken_at",
    )

    def __init__(self, session: Carrier, connection_id: int) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self.id = connection_id
        self._socket: socket.socket | None = None
        self._backlog = Backlog()
        """What it hasn't taken."""
        self._reading = self._writing = False
        self._client_ended = self._target_ended = False
        self.last_taken_at = self._loop.time()

    @property
    def held(self) -> int:
        """Bytes for the target that it hasn't taken."""
        return self._backlog.size

    # --- from the client

    def write(self, data: Buffer) -> None:
        """More from the client."""
        taken = 0
        if not self.held and self._socket is not None:
            # What goes at once need not be put into the backlog, which may mean to copy it.
            try:
                taken = self._socket.send(data)
            except OSError:  # it takes nothing now, or nothing any more: the next one tells
                taken = 0
        if taken:
            self.last_taken_at = self._loop.time()
        if taken < len(data):
            before = self._backlog.cost
            self._backlog.append(memoryview(data)[taken:] if taken else data)
            self._session.held += self._backlog.cost - before
            if self._socket is not None and not self._writing:
                self._write()
        if taken:
            self._session.taken(self.id, taken)

    def end(self) -> None:
        """The client has no more, behind what waits."""
        self._client_ended = True
        if self._socket is not None and not self.held:
            self._shut()

    def open(self, sock: socket.socket) -> None:
        """Connected: what came meanwhile goes there."""
        self._socket = sock
        self.last_taken_at = self._loop.time()
        self._write()
        self.resume()

    def close(self) -> None:
        """Forget it. Idempotent."""
        self.pause()
        if self._socket is not None:
            if self._writing:
                self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
        self._session.held -= self._backlog.cost
        self._backlog.clear()
        self._session.stalled.pop(self, None)

    # --- the socket

    def pause(self) -> None:
        """Leave what the target says with the kernel."""
        if self._reading and self._socket is not None:
            self._loop.remove_reader(self._socket)
        self._reading = False

    def resume(self) -> None:
        """Read again."""
        if self._socket is None or self._reading or self._target_ended:
            return
        self._reading = True
        self._loop.add_reader(self._socket, self._read)

    def go_on(self) -> None:
        """The client has room again."""
        self.resume()

    def _read(self) -> None:
        if self._session.is_full:
            self.pause()
            self._session.stalled[self] = None
            return
        assert self._socket is not None  # noqa: S101 - a closed one has no reader
        room = self._session.room(self.id)
        try:
            if room:
                data = self._socket.recv(room)
            elif data := self._socket.recv(1, socket.MSG_PEEK):  # the end needs no room
                self.pause()
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._session.target_reset(self)
            return
        if not data:
            self._target_ended = True
            self.pause()
            self._session.target_ended(self)
            self._finish_if_over()
            return
        self._session.send(self.id, data)

    def _write(self) -> None:
        taken = 0
        if self.held and self._socket is not None:
            try:
                taken = self._socket.sendmsg(self._backlog.buffers())
            except (BlockingIOError, InterruptedError):
                taken = 0
            except OSError:
                self._session.target_reset(self)
                return
        if taken:
            before = self._backlog.cost
            self._backlog.take(taken)
            self._session.held += self._backlog.cost - before
            self.last_taken_at = self._loop.time()
        if self._socket is not None:
            if self.held and not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket, self._write)
            elif not self.held and self._writing:
                self._writing = False
                self._loop.remove_writer(self._socket)
        if not self.held and self._client_ended:
            self._shut()
        if taken:
            self._session.taken(self.id, taken)

    def _shut(self) -> None:
        if self._socket is None:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone already, and reading says how
            pass
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        if self._client_ended and self._target_ended and not self.held:
            self._session.target_over(self)
