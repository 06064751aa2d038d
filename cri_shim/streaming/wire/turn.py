"""How much of what a peer sent is looked at in one turn of the loop, and what is left for the next.

Rules: a peer may make its frames as small as it likes, and a few bytes of a header block as large; so what counts is
what they cost here, not their bytes. The machines stop at the end of their turn and say so (`has_more`); who drives
them gives others theirs first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cri_shim.streaming.wire.buffers import Buffer

COST_PER_TURN: Final = 512
"""In small frames, each of which takes some ten microseconds all the way to its target. A long frame is one, too."""
_NOTHING: Final = memoryview(b"")


class Turn:
    """What is left of this turn, and what came and was not looked at."""

    __slots__ = ("_unread", "left")

    def __init__(self) -> None:
        self.left = COST_PER_TURN
        self._unread = _NOTHING

    @property
    def has_more(self) -> bool:
        """Whether something is left for another turn."""
        return len(self._unread) > 0

    def begin(self) -> None:
        """A turn."""
        self.left = COST_PER_TURN

    def take(self, data: Buffer) -> memoryview:
        """What to look at: what was left, and `data` behind it."""
        unread, self._unread = self._unread, _NOTHING
        if not len(unread):
            return memoryview(data)
        return memoryview(bytes(unread) + bytes(data)) if len(data) else unread

    def leave(self, rest: memoryview) -> None:
        """For the next turn."""
        self._unread = rest

    def forget(self) -> None:
        """Nothing of it matters any more."""
        self._unread = _NOTHING
