"""Clients between their connection and their session: how many there may be, and which one makes room for another.

Rules:
- Until its ticket is redeemed, a client is anonymous. The kubelet and a pod on the host network both come from
  127.0.0.1, so neither address nor user would tell them apart. What is shared out is time: every client gets
  `MIN_TIME_S` to send its request, however many others come. An honest client needs a few milliseconds. A client whose
  bytes this busy process has not read yet gets `MAX_TIME_S`.
- After that time the oldest makes room. So the silent ones go, not those that have just come.
- While all are younger, no more clients are accepted. They wait in the listener's queue, in order, and are served at
  `MAX_NEWCOMERS / MIN_TIME_S` a second, or at least at `MAX_NEWCOMERS / MAX_TIME_S`.
- A client whose ticket is being redeemed has sent its request and can't be evicted. One that was refused can: it has
  its answer.
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
    """The clients that have no session yet."""

    def __init__(self) -> None:
        self._since: dict[Connection, float] = {}
        """Clients that can be evicted, the oldest first."""
        self._safe: set[Connection] = set()
        self._heard: set[Connection] = set()
        """Clients that can be evicted and whose request was read: nothing more of them is."""

    def __len__(self) -> int:
        return len(self._since) + len(self._safe)

    def has_room(self) -> bool:
        """Whether another client may enter, even if the oldest has to go for it."""
        if len(self) < MAX_NEWCOMERS:
            return True
        oldest, since_s = next(iter(self._since.items()), (None, 0.0))
        if oldest is None:
            return False
        age_s = time.monotonic() - since_s
        if age_s >= MAX_TIME_S or oldest in self._heard:
            return age_s >= MIN_TIME_S
        # Bytes that this busy process has not read yet are not silence.
        return age_s >= MIN_TIME_S and not oldest.has_unread()

    def enter(self, connection: Connection) -> None:
        """Add a client; evict the oldest if there are too many."""
        if len(self) >= MAX_NEWCOMERS and self._since:
            oldest = next(iter(self._since))
            self.leave(oldest)
            oldest.close()
        self._since[connection] = time.monotonic()

    def keep(self, connection: Connection) -> None:
        """Protect a client from eviction, if it is still there."""
        if self._since.pop(connection, None) is not None:
            self._safe.add(connection)

    def release(self, connection: Connection) -> None:
        """End the protection of a client."""
        if connection in self._safe:
            self._safe.remove(connection)
            self._since[connection] = time.monotonic()
            self._heard.add(connection)

    def leave(self, connection: Connection) -> None:
        """Remove a client, which has a session or is gone. Idempotent."""
        self._since.pop(connection, None)
        self._safe.discard(connection)
        self._heard.discard(connection)

    def close(self) -> None:
        """Close all connections."""
        for connection in [*self._since, *self._safe]:
            connection.close()
