"""One forwarded connection: its socket into the pod, its backlog, and the ends of its two directions.

Rules: the directions end independently. Bytes that the target doesn't take are held, and the session counts their
memory. The target is read only as far as the client has room.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Protocol

from cri_shim.streaming.backlog import Backlog

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer


class Carrier(Protocol):
    """The session of a target."""

    held: int
    """Bytes of memory of what the targets haven't taken."""
    stalled: dict[Target, None]
    """Targets with output that wait for the client to take what it was sent, in order."""

    @property
    def is_full(self) -> bool:
        """Whether sent bytes still wait for the client."""

    def room(self, connection_id: int) -> int:
        """How many bytes the client takes of this target. After 0, `go_on` follows when there is room."""

    def send(self, connection_id: int, data: Buffer) -> None:
        """Send the target's bytes."""

    def taken(self, connection_id: int, n_bytes: int) -> None:
        """The target has taken bytes."""

    def target_ended(self, target: Target) -> None:
        """The target reached the end of its output."""

    def target_over(self, target: Target) -> None:
        """Both directions have ended."""

    def target_reset(self, target: Target) -> None:
        """The target's connection broke."""


class Target:
    """One connection: its socket, once connected, and what waits for it."""

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
        """Bytes that the target hasn't taken."""
        self._reading = self._writing = False
        self._client_ended = self._target_ended = False
        self.last_taken_at = self._loop.time()

    @property
    def held(self) -> int:
        """The number of bytes that the target hasn't taken."""
        return self._backlog.size

    # --- from the client

    def write(self, data: Buffer) -> None:
        """Pass bytes of the client to the target."""
        taken = 0
        if not self.held and self._socket is not None:
            # Without the backlog, which may have to copy.
            try:
                taken = self._socket.send(data)
            except OSError:  # full, or broken: the write from the backlog tells which
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
        """The client closed its direction. The target hears of it after the bytes that wait."""
        self._client_ended = True
        if self._socket is not None and not self.held:
            self._shut()

    def open(self, sock: socket.socket) -> None:
        """The connection was made: send what has arrived meanwhile."""
        self._socket = sock
        self.last_taken_at = self._loop.time()
        self._write()
        self.resume()

    def close(self) -> None:
        """Close the socket and drop what waits. Idempotent."""
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
        """Stop reading from the target."""
        if self._reading and self._socket is not None:
            self._loop.remove_reader(self._socket)
        self._reading = False

    def resume(self) -> None:
        """Read from the target again."""
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
            elif data := self._socket.recv(
                1, socket.MSG_PEEK
            ):  # without room: only look for the end
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
        except OSError:  # the connection is gone; the next read reports how
            pass
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        if self._client_ended and self._target_ended and not self.held:
            self._session.target_over(self)
