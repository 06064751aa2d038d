"""One forwarded connection: its socket into the pod, what waits for it, and how its halves end.

Rules: both halves end on their own; what the target doesn't take is held and counted by the session, and what the
client has no room for stops the reading.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol

from cri_shim.streaming.connection import CHUNK_BYTES, MAX_BUFFERS

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer


class Carrier(Protocol):
    """The session it belongs to."""

    held: int
    """Bytes for all targets that they haven't taken."""
    stalled: list[Target]
    """Targets that have something to say while the client doesn't take what there is."""

    @property
    def is_full(self) -> bool:
        """Whether the client has still to take what it was sent."""

    def send(self, connection_id: int, data: Buffer) -> int:
        """Send what the target said; how much of it was taken."""

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

    def __init__(self, session: Carrier, connection_id: int) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self.id = connection_id
        self._socket: socket.socket | None = None
        self._queue: deque[Buffer] = deque()
        self.held = 0
        """Bytes for the target that it hasn't taken."""
        self.back: Buffer = b""
        """What the target said and a client that counts has no room for."""
        self._reading = self._writing = False
        self._client_ended = self._target_ended = False
        self.last_taken_at = self._loop.time()

    # --- from the client

    def write(self, data: Buffer) -> None:
        """More from the client."""
        self._queue.append(data)
        self.held += len(data)
        self._session.held += len(data)
        if self._socket is not None and not self._writing:
            self._write()

    def end(self) -> None:
        """The client has no more, behind what waits."""
        self._client_ended = True
        if self._socket is not None and not self._queue:
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
        self._session.held -= self.held
        self.held = 0
        self._queue.clear()

    # --- the socket

    def pause(self) -> None:
        """Leave what the target says with the kernel."""
        if self._reading and self._socket is not None:
            self._loop.remove_reader(self._socket)
        self._reading = False

    def resume(self) -> None:
        """Read again."""
        if self._socket is None or self._reading or self._target_ended or self.back:
            return
        self._reading = True
        self._loop.add_reader(self._socket, self._read)

    def go_on(self) -> None:
        """The client has room again."""
        if self.back:
            self.back = self.back[self._session.send(self.id, self.back) :]
        if not self.back and self._target_ended:
            self._session.target_ended(self)
        else:
            self.resume()

    def _read(self) -> None:
        if self._session.is_full:
            self.pause()
            self._session.stalled.append(self)
            return
        assert self._socket is not None  # noqa: S101 - a closed one has no reader
        try:
            data = self._socket.recv(CHUNK_BYTES)
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
        taken = self._session.send(self.id, data)
        if taken < len(data):
            self.back = memoryview(data)[taken:]
            self.pause()

    def _write(self) -> None:
        taken = 0
        if self._queue and self._socket is not None:
            buffers = [self._queue[i] for i in range(min(len(self._queue), MAX_BUFFERS))]
            try:
                taken = self._socket.sendmsg(buffers)
            except (BlockingIOError, InterruptedError):
                taken = 0
            except OSError:
                self._session.target_reset(self)
                return
        if taken:
            self.held -= taken
            self._session.held -= taken
            self.last_taken_at = self._loop.time()
            left = taken
            while left:
                head = self._queue[0]
                if left < len(head):
                    self._queue[0] = memoryview(head)[left:]
                    break
                left -= len(head)
                self._queue.popleft()
        if self._socket is not None:
            if self._queue and not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket, self._write)
            elif not self._queue and self._writing:
                self._writing = False
                self._loop.remove_writer(self._socket)
        if not self._queue and self._client_ended:
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
        if self._client_ended and self._target_ended and not self._queue and not self.back:
            self._session.target_over(self)
