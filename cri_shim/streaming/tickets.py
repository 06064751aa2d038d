"""Tickets: what lets a client that knows only a URL do exactly what CRI was asked for, once.

Rules:
- 128 random bits, good for one use within a time, and for one request: nothing in the URL can change what it does.
- A bounded number wait, and of one pod no more than a share. Those past their time make room; a thousand that are not
  is somebody who asks and never comes.
- Issued on the daemon's loop and redeemed on the server's, hence the lock.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import ResourceExhaustedError
from cri_shim.streaming.wire.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.streaming.backend import Request

MAX_WAITING = 1000
MAX_WAITING_OF_A_POD = 250
TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Ticket:
    request: Request
    good_until: float


class Tickets:
    """The tickets that wait for their clients."""

    def __init__(self, ttl_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.ttl_s = ttl_s
        """For those issued from now on."""
        self._clock = clock
        self._waiting: dict[str, _Ticket] = {}
        self._shares = Shares(MAX_WAITING, MAX_WAITING_OF_A_POD)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def issue(self, request: Request) -> str:
        """A token, safe in a URL. Raises ResourceExhaustedError while too many wait, or too many of that pod."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        now = self._clock()
        with self._lock:
            if not self._shares.take(request.sandbox_id):
                for late in [t for t, ticket in self._waiting.items() if ticket.good_until <= now]:
                    self._forget(late)
                if not self._shares.take(request.sandbox_id):
                    raise ResourceExhaustedError(self._too_many(request.sandbox_id))
            self._waiting[token] = _Ticket(request, now + self.ttl_s)
        return token

    def _too_many(self, sandbox_id: str) -> str:
        count, whose = MAX_WAITING_OF_A_POD, f" of sandbox {sandbox_id}"
        if self._shares.is_full:
            count, whose = MAX_WAITING, ""
        return (
            f"{count} streaming requests{whose} wait for their clients to call the URL they were given: "
            f"try again within {self.ttl_s:g} s"
        )

    def _forget(self, token: str) -> _Ticket:
        ticket = self._waiting.pop(token)
        self._shares.give(ticket.request.sandbox_id)
        return ticket

    def redeem(self, token: str, kind: type[Request]) -> Request | None:
        """The request, and the ticket is gone; None for one that isn't there, is late, or is of another kind."""
        with self._lock:
            ticket = self._waiting.get(token)
            if ticket is None or not isinstance(ticket.request, kind):
                return None
            self._forget(token)
        return ticket.request if ticket.good_until > self._clock() else None
