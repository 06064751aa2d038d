"""Clients between their connection and their session: how many there may be, and who has to go for another.

Rules:
- The kubelet and a pod on the host's network both come from 127.0.0.1, and until its ticket is redeemed nothing tells
  one client from another: neither address nor user would. So what is shared out is time. Everybody has `MIN_TIME_S` to
  say what it wants, whoever else comes meanwhile; an honest client needs a few milliseconds. Who has said something
  that this process, being busy, has not read yet has `MAX_TIME_S`.
- Beyond that the oldest makes room: those that say nothing go, not those that have just come.
- While all are younger, nobody more is accepted. Who comes then waits in the listener's queue, in order, and those
  there get their turn at `MAX_NEWCOMERS / MIN_TIME_S` a second, at `MAX_NEWCOMERS / MAX_TIME_S` at least.
- One whose ticket is being redeemed has said what it wants, and can't be put out. One that was refused can: it has its
  answer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cri_shim.streaming.connection import Connection

MAX_NEWCOMERS = 512
MIN_TIME_S = 0.5
MAX_TIME_S = 2.0


class Newcomers:
    """Those that there are."""

    def __init__(self) -> None:
        self._since: dict[Connection, float] = {}
        """Those that can be put out, the oldest first."""
        self._safe: set[Connection] = set()
        self._heard: set[Connection] = set()
        """Of those that can be put out: nothing more of them will be read."""

    def __len__(self) -> int:
        return len(self._since) + len(self._safe)

    def has_room(self) -> bool:
        """Whether one more may come, even if another has to go."""
        if len(self) < MAX_NEWCOMERS:
            return True
        oldest, since_s = next(iter(self._since.items()), (None, 0.0))
        if oldest is None:
            return False
        age_s = time.monotonic() - since_s
        if age_s >= MAX_TIME_S or oldest in self._heard:
            return age_s >= MIN_TIME_S
        return age_s >= MIN_TIME_S and not oldest.has_unread()

    def enter(self, connection: Connection) -> None:
        """One more; the oldest goes if there are too many."""
        if len(self) >= MAX_NEWCOMERS and self._since:
            oldest = next(iter(self._since))
            self.leave(oldest)
            oldest.close()
        self._since[connection] = time.monotonic()

    def keep(self, connection: Connection) -> None:
        """It must not be put out from now on, if it has not been."""
        if self._since.pop(connection, None) is not None:
            self._safe.add(connection)

    def release(self, connection: Connection) -> None:
        """It may be put out again."""
        if connection in self._safe:
            self._safe.remove(connection)
            self._since[connection] = time.monotonic()
            self._heard.add(connection)

    def leave(self, connection: Connection) -> None:
        """It is none any more. Idempotent."""
        self._since.pop(connection, None)
        self._safe.discard(connection)
        self._heard.discard(connection)

    def close(self) -> None:
        """Hang up on all of them."""
        for connection in [*self._since, *self._safe]:
            connection.close()
