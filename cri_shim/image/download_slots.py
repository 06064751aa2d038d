"""Slots for downloads: how many run on this node at once, and who gets one.

Rules:
- A registry gets no more than its share of the slots, so that another registry's images find one free.
- Whoever is slow gives its slot back and goes on without: a sender that drips must not keep others from downloading.
  How many may be slow at once is bounded as well, for a registry and in all; who would be one more has to end.
- First come, first served, but for those whose registry has its share: they keep nobody waiting.

Used on the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class DownloadSlot:
    """The right to download, as long as its context is open."""

    def __init__(self, slots: DownloadSlots, registry: str) -> None:
        self._slots = slots
        self.registry = registry
        self.is_slow = False

    def give_back(self) -> bool:
        """Go on as a slow download. False where too many are slow already: then this one has to end."""
        return self._slots.make_slow(self)


class DownloadSlots:
    """The slots of one node."""

    def __init__(self, slots: int, *, of_one_registry: int, slow: int, slow_of_one: int) -> None:
        """`slow` downloads may go on beside those in `slots`; the other two are one registry's shares of each."""
        self._slots = slots
        self._of_one_registry = of_one_registry
        self._slow = slow
        self._slow_of_one = slow_of_one
        self._taken: Counter[str] = Counter()
        self._slowed: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def slot(self, registry: str) -> AsyncIterator[DownloadSlot]:
        """Wait for a slot; it is free again when this closes."""
        await self._take(registry)
        slot = DownloadSlot(self, registry)
        try:
            yield slot
        finally:
            (self._slowed if slot.is_slow else self._taken)[registry] -= 1
            self._hand_out()

    def make_slow(self, slot: DownloadSlot) -> bool:
        """See `DownloadSlot.give_back`."""
        if slot.is_slow:
            return True
        if self._slowed.total() >= self._slow or self._slowed[slot.registry] >= self._slow_of_one:
            return False
        slot.is_slow = True
        self._slowed[slot.registry] += 1
        self._taken[slot.registry] -= 1
        self._hand_out()
        return True

    async def _take(self, registry: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((registry, turn))
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((registry, turn))
            else:
                self._taken[registry] -= 1  # it came at the same moment
                self._hand_out()
            raise

    def _hand_out(self) -> None:
        self._taken, self._slowed = +self._taken, +self._slowed  # forget registries without any
        left: deque[tuple[str, asyncio.Future[None]]] = deque()
        for registry, turn in self._waiting:
            if turn.cancelled():
                left.append((registry, turn))  # its waiter takes it away
            elif (
                self._taken.total() < self._slots and self._taken[registry] < self._of_one_registry
            ):
                self._taken[registry] += 1
                turn.set_result(None)
            else:
                left.append((registry, turn))
        self._waiting = left
