"""The socket that clients connect to: taken from while there is room, a few in each turn of the loop.

Rules:
- Who isn't taken waits in the kernel's queue. Without room, or without descriptors, taking pauses: trying again at once
  would only burn the processor.
- Who hung up while it waited is dropped as it is taken, also without room. Else who connects and hangs up again and
  again would fill the queue with the dead, and a client that finds it full tries again after a second at best.
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
"""A client whose machine is gone is noticed after two and a half minutes."""
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Takes clients, from its making to `close`."""

    def __init__(
        self,
        sock: socket.socket,
        has_room: Callable[[], bool],
        on_client: Callable[[socket.socket], None],
    ) -> None:
        """`sock` belongs to this object. `on_client` gets sockets that don't block."""
        sock.setblocking(False)
        self._socket = sock
        self._has_room = has_room
        self._on_client = on_client
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._waiting: socket.socket | None = None
        """Who was taken, and found no room."""
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Take no more. Idempotent."""
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
        """The next one, if there is any."""
        try:
            sock, _address = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                log.error("streaming clients have to wait", error=error.strerror)
                self._wait(LACK_PAUSE_S)
            return None
        return sock

    def _hand_on(self, sock: socket.socket) -> None:
        try:
            _prepare(sock)
        except OSError:  # gone already
            sock.close()
        else:
            self._on_client(sock)

    def _wait(self, pause_s: float) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)
        self._accept()  # the one that was taken, whether or not another has come


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_S),
        (socket.TCP_KEEPINTVL, KEEPALIVE_S),
        (socket.TCP_KEEPCNT, KEEPALIVE_TRIES),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
