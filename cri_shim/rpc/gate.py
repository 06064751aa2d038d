"""Who may call now, and who is still inside: readiness at the start, draining at the stop.

    recovering ──open──> open ──drain──> closed
         └────────────────drain────────────^

Calls that are about the server itself (Version, Operations, health, reflection) pass in every phase and are not waited
for. While something has the server to itself (`only_looking`), of the others those pass that change nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from cri_shim.errors import NotReadyError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Phase(StrEnum):
    """Where the server stands."""

    RECOVERING = "recovering"
    OPEN = "open"
    CLOSED = "closed"


class Gate:
    """Counts the calls inside and turns away those that come too early or too late."""

    def __init__(self) -> None:
        self._phase = Phase.RECOVERING
        self._inside = 0
        self._busy_with = ""
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def phase(self) -> Phase:
        """Where the server stands."""
        return self._phase

    @property
    def inside(self) -> int:
        """How many admitted calls have not ended."""
        return self._inside

    def open(self) -> None:
        """Recovery is done: admit calls. Once closed it stays closed."""
        if self._phase is Phase.RECOVERING:
            self._phase = Phase.OPEN

    @contextmanager
    def only_looking(self, why: str) -> Iterator[None]:
        """Turn away what would change something, for as long as the block runs; `why` is the answer.

        Raises UnavailableError while another such block runs.
        """
        self._refuse_if_busy()
        self._busy_with = why
        try:
            yield
        finally:
            self._busy_with = ""

    def _refuse_if_busy(self) -> None:
        if self._busy_with:
            raise UnavailableError(f"{self._busy_with}; retry when that is over")

    @contextmanager
    def admitted(self, *, only_looks: bool = False) -> Iterator[None]:
        """Be inside for as long as the block runs; `only_looks` for a call that changes nothing.

        Raises: NotReadyError before `open`, UnavailableError after `drain` and during `only_looking`.
        """
        if self._phase is Phase.RECOVERING:
            raise NotReadyError(
                "cri-shim is recovering: it still looks after the pods of its last run; retry in a moment"
            )
        if self._phase is Phase.CLOSED:
            raise UnavailableError("cri-shim is stopping; retry when it is up again")
        if not only_looks:
            self._refuse_if_busy()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def drain(self, grace_s: float) -> int:
        """Turn new calls away and wait at most `grace_s` for those inside. Returns how many did not end."""
        self._phase = Phase.CLOSED
        try:
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        except TimeoutError:
            pass  # the caller is told how many are left
        return self._inside
