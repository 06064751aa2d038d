"""Bytes that wait for a descriptor, accounted by the memory they occupy.

Rules:
- A small piece costs a hundred bytes beyond its own, and a view keeps its whole chunk alive. So small pieces, and views
  of less than half of their chunk, are copied together into one buffer.
- A piece that was partly written still costs its full size until it is written completely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer

SMALL_BYTES: Final = 4 << 10
JOINED_BYTES: Final = 64 << 10
ENTRY_COST: Final = 256
"""An object, its allocation and its place in the list."""
MAX_BUFFERS: Final = 64
"""Per gathering write: enough for a few data frames with their headers."""


class Backlog:
    """Waiting bytes, in order."""

    __slots__ = ("_pieces", "_taken", "cost", "size")

    def __init__(self) -> None:
        self._pieces: list[Buffer | bytearray] = []
        self._taken = 0
        """Bytes of the first piece that are written."""
        self.size = 0
        """Bytes that wait."""
        self.cost = 0
        """Bytes of memory that they occupy."""

    def append(self, data: Buffer) -> None:
        """Add bytes at the end."""
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
        """The first bytes, for one gathering write. Don't keep the list: the next call changes it."""
        if not self._taken and len(self._pieces) <= MAX_BUFFERS:
            return self._pieces
        first = self._pieces[:MAX_BUFFERS]
        first[0] = memoryview(first[0])[self._taken :]
        return first

    def take(self, size: int) -> None:
        """Remove bytes that were written."""
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
        """Remove everything."""
        self._pieces.clear()
        self._taken = self.size = self.cost = 0


def _keeps_more(data: Buffer, size: int) -> bool:
    """Whether `data` is a view of a chunk of more than twice its size."""
    return isinstance(data, memoryview) and len(data.obj) > 2 * size  # type: ignore[arg-type]
