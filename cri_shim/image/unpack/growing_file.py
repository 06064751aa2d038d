"""A file that one process writes and another reads while it grows: the writer tells by a socket how far it has come.

Rules: both the daemon and the unpacker's child import this. The socket keeps packets apart (SEQPACKET), and each packet
is the size that the file has by now; the socket's end is the file's. The reader has a descriptor that can't write.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SIZE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Growing:
    """The daemon's end."""

    fd: int
    """Open for reading only."""
    sizes: AsyncIterator[int]
    """How many bytes are there, each time that some have come; its end is the file's."""


def encode_size(size: int) -> bytes:
    """One packet."""
    return size.to_bytes(_SIZE_BYTES, "little")


class GrowingFile:
    """The reader's end (`inflate.Source`)."""

    def __init__(self, fd: int, sizes_fd: int) -> None:
        self._fd = fd
        self._sizes_fd = sizes_fd
        self._position = 0
        self._size = 0

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; waits for some, and is empty at the end."""
        while self._position == self._size:
            packet = os.read(self._sizes_fd, _SIZE_BYTES)
            if not packet:
                return b""
            self._size = int.from_bytes(packet, "little")
        data = os.pread(self._fd, min(size, self._size - self._position), self._position)
        self._position += len(data)
        return data
