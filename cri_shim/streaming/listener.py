"""The listening socket: clients are accepted while there is room, a few per turn of the event loop.

Rules:
- Clients that are not accepted wait in the kernel's queue. Without room, or without descriptors, accepting pauses: an
  immediate retry would only burn CPU time.
- A client that hung up while it waited is dropped when it is accepted, even without room. Otherwise connecting and
  hanging up in a loop would fill the queue with dead connections. A client that finds the queue full retries after a
  second at best.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

import structlog

from cri_shim.streaming.connection import has_hung_up

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger()

ACCEPTS_AT_ONCE = 32
FULL_PAUSE_S = 0.02
LACK_PAUSE_S = 0.5
KEEPALIVE_S = 30
KEEPALIVE_TRIES = 4
"""A client whose machine vanished is noticed after two and a half minutes."""
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Accepts clients until `close`."""

    def __init__(
        self,
        sock: socket.socket,
        has_room: Callable[[], bool],
        on_client: Callable[[socket.socket], None],
    ) -> None:
        """Takes over `sock`. `on_client` gets non-blocking sockets."""
        sock.setblocking(False)
        self._socket = sock
        self._has_room = has_room
        self._on_client = on_client
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._waiting: socket.socket | None = None
        """An accepted client for which there was no room."""
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Stop accepting. Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            sock, self._waiting = self._waiting or self._take(), None
            if sock is None:
                return
            if has_hung_up(sock.fileno()):
                sock.close()
            elif self._has_room():
                self._hand_on(sock)
            else:
                self._waiting = sock
                self._wait(FULL_PAUSE_S)
                return

    def _take(self) -> socket.socket | None:
        """Accept the next client, if there is one."""
        try:
            sock, _address = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                log.error(
                    "streaming clients wait: no descriptor or memory to accept them",
                    error=error.strerror,
                )
                self._wait(LACK_PAUSE_S)
            return None
        return sock

    def _hand_on(self, sock: socket.socket) -> None:
        try:
            _prepare(sock)
        except OSError:  # the client is gone
            sock.close()
        else:
            self._on_client(sock)

    def _wait(self, pause_s: float) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)
        self._accept()  # first the client that waits in `_waiting`, for which no event would come


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    # Keystrokes and window updates are small, and must not wait for an acknowledgement (Nagle).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_S),
        (socket.TCP_KEEPINTVL, KEEPALIVE_S),
        (socket.TCP_KEEPCNT, KEEPALIVE_TRIES),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
