"""What two of our processes say to each other: packets, with descriptors beside them, over a pair of sockets.

Rules:
- A packet (SOCK_SEQPACKET) comes whole and in order, or not at all; where the other process ends is told once.
- Sending waits for nobody: what the socket doesn't take yet is queued. Descriptors that are sent belong to this object
  from then on, which closes them. Those that are received are close-on-exec, and belong to whoever is told of them.
- A process that may have no more descriptors gets a packet without those that were beside it.
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
"""Well below what a socket holds by default, which is the bound of a packet."""
MAX_DESCRIPTORS = 64
PACKETS_AT_ONCE = 64
_FD = struct.Struct("i")


def receive_packet(
    sock: socket.socket, max_bytes: int, max_descriptors: int
) -> tuple[bytes, list[int]]:
    """One packet; nothing at the other side's end. Raises OSError, EMSGSIZE for what is too long.

    Not `socket.recv_fds`, which forgets its flags: the descriptors would be inherited by every child.
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
    """Close them."""
    for fd in descriptors:
        os.close(fd)


class Packets:
    """One end, on the running loop, from its making to `close` or the other side's end."""

    def __init__(
        self,
        sock: socket.socket,
        on_packet: Callable[[bytes, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        """`sock` belongs to this object. `on_end` is called when the other side is gone, not after `close`."""
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._on_packet = on_packet
        self._on_end = on_end
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._loop.add_reader(sock, self._read)

    @property
    def closed(self) -> bool:
        """Whether nothing can be said any more."""
        return self._socket.fileno() < 0

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Say it, now or soon; silent when nobody is there any more."""
        if self.closed:
            close_all(descriptors)
            return
        self._unsent.append((data, descriptors))
        if len(self._unsent) == 1:
            self._write()
            if self._unsent and not self.closed:
                self._loop.add_writer(self._socket, self._write)

    def close(self) -> None:
        """Hang up. Idempotent."""
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
                break  # reading says so
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
            except OSError:  # it died with something unread, or makes no sense any more
                data, descriptors = b"", []
            if not data:
                self.close()
                self._on_end()
                return
            self._on_packet(data, descriptors)
            if self.closed:
                return
