"""Exchanges packets and file descriptors between two of our processes, over a pair of SOCK_SEQPACKET sockets.

Rules:
- A packet arrives whole and in order, or not at all. The end of the other process is reported once.
- Sending never blocks: packets that the socket does not accept yet are queued. `send` takes ownership of descriptors,
  and closes them once they are sent. Received descriptors are close-on-exec and belong to the callback.
- If the receiver has reached its limit of open files, the packet arrives without its descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_PACKET_BYTES = 64 << 10
"""Well below the default send buffer of a socket, which bounds the size of a packet."""
MAX_DESCRIPTORS = 64
PACKETS_AT_ONCE = 64
_FD = struct.Struct("i")


def receive_packet(
    sock: socket.socket, max_bytes: int, max_descriptors: int
) -> tuple[bytes, list[int]]:
    """Receive one packet; b"" at end of file. Raises OSError, with EMSGSIZE for a packet that is too long.

    `socket.recv_fds` is not used, since it ignores its flags (Python 3.11): without MSG_CMSG_CLOEXEC every child would
    inherit the descriptors.
    """
    data, beside, flags, _ = sock.recvmsg(
        max_bytes, socket.CMSG_LEN(max_descriptors * _FD.size), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = [
        fd
        for level, kind, given in beside
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (fd,) in _FD.iter_unpack(given[: len(given) - len(given) % _FD.size])
    ]
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(descriptors)
        descriptors = []
    if flags & socket.MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return data, descriptors


def close_all(descriptors: Sequence[int]) -> None:
    """Close all of these descriptors."""
    for fd in descriptors:
        os.close(fd)


class Packets:
    """One end of a pair, read on the running loop until `close` or until the other side ends."""

    def __init__(
        self,
        sock: socket.socket,
        on_packet: Callable[[bytes, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        """Take ownership of `sock`. `on_end` is called when the other side has ended, but not after `close`."""
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._on_packet = on_packet
        self._on_end = on_end
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._loop.add_reader(sock, self._read)

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""
        return self._socket.fileno() < 0

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a packet now, or queue it. A packet is dropped if this end is closed or the other side has ended."""
        if self.closed:
            close_all(descriptors)
            return
        self._unsent.append((data, descriptors))
        if len(self._unsent) == 1:
            self._write()
            if self._unsent and not self.closed:
                self._loop.add_writer(self._socket, self._write)

    def close(self) -> None:
        """Close the socket, and drop queued packets with their descriptors. Idempotent."""
        if self.closed:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        while self._unsent:
            close_all(self._unsent.popleft()[1])

    def _write(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._socket, [data], list(descriptors))
            except (BlockingIOError, InterruptedError):
                return
            except (BrokenPipeError, ConnectionResetError):
                break  # `_read` will see end of file and report it
            del self._unsent[0]
            close_all(descriptors)
        while self._unsent:
            close_all(self._unsent.popleft()[1])
        self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        for _ in range(PACKETS_AT_ONCE):
            try:
                data, descriptors = receive_packet(self._socket, MAX_PACKET_BYTES, MAX_DESCRIPTORS)
            except (BlockingIOError, InterruptedError):
                return
            except (
                OSError
            ):  # ECONNRESET: it died with unread packets; EMSGSIZE: it broke the protocol
                data, descriptors = b"", []
            if not data:
                self.close()
                self._on_end()
                return
            self._on_packet(data, descriptors)
            if self.closed:
                return
