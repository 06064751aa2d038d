"""A file that one process writes and another reads while it grows. A socket carries the file's size.

Rules: the daemon and the unpacking child both import this. The socket is SOCK_SEQPACKET; each packet is the current
size of the file, and the socket's end means the file is complete. The reader's descriptor of the file is read-only.
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
    """The daemon's side."""

    fd: int
    """The file, open for reading only."""
    sizes: AsyncIterator[int]
    """The file's size after each growth. The iterator ends with the file."""


def encode_size(size: int) -> bytes:
    """Encode one packet."""
    return size.to_bytes(_SIZE_BYTES, "little")


class GrowingFile:
    """The reader's side (`inflate.Source`)."""

    def __init__(self, fd: int, sizes_fd: int) -> None:
        self._fd = fd
        self._sizes_fd = sizes_fd
        self._position = 0
        self._size = 0

    def read(self, size: int) -> bytes:
        """Wait for bytes and return at most `size` of them; empty at the end of the file."""
        while self._position == self._size:
            packet = os.read(self._sizes_fd, _SIZE_BYTES)
            if not packet:
                return b""
            self._size = int.from_bytes(packet, "little")
        data = os.pread(self._fd, min(size, self._size - self._position), self._position)
        self._position += len(data)
        return data
