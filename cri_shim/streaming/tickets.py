"""Tickets: a client that knows only a URL may do exactly what the CRI request asked for, once.

Rules:
- A ticket has 128 random bits. It is good for one use, for a limited time, and for one request: nothing in the URL can
  change what it does.
- The number of waiting tickets is bounded, in all and per pod. Expired ones make room. The bound is reached only by
  callers that request streams and never connect.
- Tickets are issued and redeemed on the daemon's event loop: nothing comes between, so there is no lock.
"""

from __future__ import annotations

import secrets
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
    """The tickets that were issued and not used yet."""

    def __init__(self, ttl_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.ttl_s = ttl_s
        """For tickets issued from now on."""
        self._clock = clock
        self._waiting: dict[str, _Ticket] = {}
        self._shares = Shares(MAX_WAITING, MAX_WAITING_OF_A_POD)

    def __len__(self) -> int:
        return len(self._waiting)

    def issue(self, request: Request) -> str:
        """Issue a token, safe in a URL. Raises ResourceExhaustedError while too many wait, in all or of that pod."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        now = self._clock()
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
            f"{count} streaming requests{whose} wait for a client to connect to their URL: "
            f"try again within {self.ttl_s:g} s"
        )

    def _forget(self, token: str) -> _Ticket:
        ticket = self._waiting.pop(token)
        self._shares.give(ticket.request.sandbox_id)
        return ticket

    def redeem(self, token: str, kind: type[Request]) -> Request | None:
        """Use up a ticket; None for one that is unknown, expired or of another kind."""
        ticket = self._waiting.get(token)
        if ticket is None or not isinstance(ticket.request, kind):
            return None
        self._forget(token)
        return ticket.request if ticket.good_until > self._clock() else None
