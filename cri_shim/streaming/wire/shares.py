"""Limits that many users share, with a part for each owner. Pure.

Rules: every user gives back what it took, one by one or all at once at its end.
"""

from __future__ import annotations

from collections import Counter


class Shares:
    """A limit in all, and one per owner."""

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self.each = each
        self._used: Counter[str] = Counter()
        self._all = 0

    @property
    def used(self) -> int:
        """The number in use by all owners."""
        return self._all

    @property
    def owners(self) -> tuple[str, ...]:
        """Who has any."""
        return tuple(self._used)

    @property
    def is_full(self) -> bool:
        """Whether the limit in all is reached."""
        return self._all >= self.total

    def take(self, owner: str) -> bool:
        """Take one for `owner`; False if its part or the whole is used up."""
        if self.is_full or self._used[owner] >= self.each:
            return False
        self._all += 1
        self._used[owner] += 1
        return True

    def give(self, owner: str, count: int = 1) -> None:
        """Give back `count`."""
        self._all -= count
        self._used[owner] -= count
        if not self._used[owner]:
            del self._used[owner]


class Share:
    """One user's part of its owner's share, with its own limit."""

    def __init__(self, shares: Shares, owner: str, at_most: int) -> None:
        self._shares = shares
        self._owner = owner
        self._at_most = at_most
        self._used = 0

    def take(self) -> bool:
        """Take one; False if a limit is reached."""
        if self._used >= self._at_most or not self._shares.take(self._owner):
            return False
        self._used += 1
        return True

    def give(self, count: int = 1) -> None:
        """Give back `count`."""
        if count:
            self._used -= count
            self._shares.give(self._owner, count)

    def close(self) -> None:
        """Give back everything. Idempotent."""
        self.give(self._used)
