"""What sessions there are, and what they carried: numbers for the metrics, which another process serves.

Rules: that sessions began or ended is told at once, so that nobody who asks sees one that is over; bytes are told with
that, and once a second while there are any. Nothing is told twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 1.0


class Meter:
    """Counts, on the loop that is running when the first session begins."""

    def __init__(
        self,
        tell: Callable[[list[tuple[str, str, int]], list[tuple[str, str, int]]], None],
    ) -> None:
        """`tell` gets (kind, protocol, sessions now), then (kind, direction, bytes since it was told last)."""
        self._tell = tell
        self._sessions: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def begun(self, kind: str, protocol: str) -> None:
        """A session."""
        self._sessions[kind, protocol] += 1
        self._tell_now()

    def ended(self, kind: str, protocol: str) -> None:
        """A session."""
        self._sessions[kind, protocol] -= 1
        self._tell_now()

    def carried(self, kind: str, direction: str, n_bytes: int) -> None:
        """Payload: `in` from clients, `out` to them."""
        self._bytes[kind, direction] += n_bytes
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(INTERVAL_S, self._tell_now)

    def _tell_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        carried, self._bytes = self._bytes, Counter()
        self._tell(
            [(kind, protocol, now) for (kind, protocol), now in self._sessions.items()],
            [(kind, direction, more) for (kind, direction), more in carried.items() if more],
        )
        self._sessions = +self._sessions
