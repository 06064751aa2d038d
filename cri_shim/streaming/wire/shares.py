"""Bounds that many have in common, of which nobody may use up more than a share. Pure.

Rules: what was taken is given back by whoever took it, or all at once when that is over.
"""

from __future__ import annotations

from collections import Counter


class Shares:
    """So many in all, so many for each owner."""

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self.each = each
        self._used: Counter[str] = Counter()
        self._all = 0

    @property
    def used(self) -> int:
        """By all."""
        return self._all

    @property
    def is_full(self) -> bool:
        """Whether nobody can have any."""
        return self._all >= self.total

    def take(self, owner: str) -> bool:
        """One for `owner`; False when it has its share already, or all are taken."""
        if self.is_full or self._used[owner] >= self.each:
            return False
        self._all += 1
        self._used[owner] += 1
        return True

    def give(self, owner: str, count: int = 1) -> None:
        """So many back."""
        self._all -= count
        self._used[owner] -= count
        if not self._used[owner]:
            del self._used[owner]


class Share:
    """What one user has of its owner's share, in its own bound."""

    def __init__(self, shares: Shares, owner: str, at_most: int) -> None:
        self._shares = shares
        self._owner = owner
        self._at_most = at_most
        self._used = 0

    def take(self) -> bool:
        """One; False when there is none."""
        if self._used >= self._at_most or not self._shares.take(self._owner):
            return False
        self._used += 1
        return True

    def give(self, count: int = 1) -> None:
        """So many back."""
        if count:
            self._used -= count
            self._shares.give(self._owner, count)

    def close(self) -> None:
        """All of it back. Idempotent."""
        self.give(self._used)
