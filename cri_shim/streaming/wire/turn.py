"""A budget for how much of a peer's bytes is parsed in one turn of the event loop; the rest waits for the next.

Rules: a peer may send tiny frames, and header blocks that a few bytes inflate to. So the budget counts what frames cost
here, not their bytes. A machine stops when its turn is used up and says so (`has_more`). Its driver calls it again
after others had their turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer

COST_PER_TURN: Final = 512
"""In small frames, each of which takes some ten microseconds up to its target. A long frame counts as one, too."""
_NOTHING: Final = memoryview(b"")


class Turn:
    """The budget left in this turn, and the received bytes that wait."""

    __slots__ = ("_unread", "left")

    def __init__(self) -> None:
        self.left = COST_PER_TURN
        self._unread = _NOTHING

    @property
    def has_more(self) -> bool:
        """Whether bytes wait for another turn."""
        return len(self._unread) > 0

    def begin(self) -> None:
        """Begin a turn with a full budget."""
        self.left = COST_PER_TURN

    def take(self, data: Buffer) -> memoryview:
        """The bytes to parse: those that wait, then `data`."""
        unread, self._unread = self._unread, _NOTHING
        if not len(unread):
            return memoryview(data)
        return memoryview(bytes(unread) + bytes(data)) if len(data) else unread

    def leave(self, rest: memoryview) -> None:
        """Keep bytes for the next turn."""
        self._unread = rest

    def forget(self) -> None:
        """Drop the bytes that wait."""
        self._unread = _NOTHING
