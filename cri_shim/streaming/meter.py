"""Counts sessions and their bytes, for the metrics that another process serves.

Rules: the begin and end of a session are reported at once, so that nobody sees a session that is over. Bytes are
reported with that, and once a second while there are any. Nothing is reported twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 1.0


class Meter:
    """Counts sessions and bytes, on the loop that runs when the first session begins."""

    def __init__(
        self,
        tell: Callable[[list[tuple[str, str, int]], list[tuple[str, str, int]]], None],
    ) -> None:
        """`tell` gets (kind, protocol, sessions now), then (kind, direction, bytes since the last report)."""
        self._tell = tell
        self._sessions: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def begun(self, kind: str, protocol: str) -> None:
        """Count a session that begins."""
        self._sessions[kind, protocol] += 1
        self._tell_now()

    def ended(self, kind: str, protocol: str) -> None:
        """Count a session that ends."""
        self._sessions[kind, protocol] -= 1
        self._tell_now()

    def carried(self, kind: str, direction: str, n_bytes: int) -> None:
        """Count payload: direction `in` is from clients, `out` to clients."""
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
