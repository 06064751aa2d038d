"""Bytes that wait for a descriptor to take them, charged by what they cost and not by what they are.

Rules:
- A small piece is an object with a hundred bytes beside its own, and a view keeps the whole chunk that it is a part of.
  So small pieces, and those that are less than half of their chunk, are copied, one behind the other into one buffer.
- What was taken of a piece still costs until the whole piece was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer

SMALL_BYTES: Final = 4 << 10
JOINED_BYTES: Final = 64 << 10
ENTRY_COST: Final = 256
"""Of an object, its allocation and its place here."""
MAX_BUFFERS: Final = 64
"""For one gathering call; a few data frames with their headers."""


class Backlog:
    """What waits, in its order."""

    __slots__ = ("_pieces", "_taken", "cost", "size")

    def __init__(self) -> None:
        self._pieces: list[Buffer | bytearray] = []
        self._taken = 0
        """Of the first piece."""
        self.size = 0
        """Bytes that wait."""
        self.cost = 0
        """Bytes that they keep."""

    def append(self, data: Buffer) -> None:
        """More."""
        size = len(data)
        if not size:
            return
        self.size += size
        if size > SMALL_BYTES and not _keeps_more(data, size):
            self._pieces.append(data)
            self.cost += size + ENTRY_COST
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) + size <= JOINED_BYTES:
            last += data
            self.cost += size
        else:
            self._pieces.append(bytearray(data))
            self.cost += size + ENTRY_COST

    def buffers(self) -> list[Buffer | bytearray]:
        """The first of it, for one gathering call; to be forgotten right after."""
        if not self._taken and len(self._pieces) <= MAX_BUFFERS:
            return self._pieces
        first = self._pieces[:MAX_BUFFERS]
        first[0] = memoryview(first[0])[self._taken :]
        return first

    def take(self, size: int) -> None:
        """So many bytes are gone."""
        self.size -= size
        size += self._taken
        whole = 0
        for piece in self._pieces:
            if size < len(piece):
                break
            size -= len(piece)
            self.cost -= len(piece) + ENTRY_COST
            whole += 1
        del self._pieces[:whole]
        self._taken = size

    def clear(self) -> None:
        """All of it is."""
        self._pieces.clear()
        self._taken = self.size = self.cost = 0


def _keeps_more(data: Buffer, size: int) -> bool:
    """Whether it is a view of something much longer."""
    return isinstance(data, memoryview) and len(data.obj) > 2 * size  # type: ignore[arg-type]
