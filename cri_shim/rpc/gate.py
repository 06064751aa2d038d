"""Who may call now, and who is still inside: readiness at the start, draining at the stop.

    recovering ──open──> open ──drain──> closed
         └────────────────drain────────────^

Calls that are about the server itself (Version, Operations, health, reflection) pass in every phase and are not waited
for. While something has the server to itself (`read_only`), of the others those pass that change nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from cri_shim.errors import NotReadyError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


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
    def read_only(self, why: str) -> Iterator[None]:
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

    def admitted(self, *, is_read_only: bool = False) -> AbstractContextManager[None]:
        """Be inside for as long as the block runs; `is_read_only` for a call that changes nothing.

        Entering raises NotReadyError before `open`, UnavailableError after `drain` and during `read_only`.
        """
        return _Admission(self, is_read_only)

    def _enter(self, is_read_only: bool) -> None:
        if self._phase is Phase.RECOVERING:
            raise NotReadyError(
                "cri-shim is recovering: it still looks after the pods of its last run; retry in a moment"
            )
        if self._phase is Phase.CLOSED:
            raise UnavailableError("cri-shim is stopping; retry when it is up again")
        if not is_read_only:
            self._refuse_if_busy()
        self._inside += 1
        self._empty.clear()

    def _leave(self) -> None:
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


class _Admission:
    """One call's way in and out: a class, since every call has one, and a generator would cost more."""

    __slots__ = ("_gate", "_is_read_only")

    def __init__(self, gate: Gate, is_read_only: bool) -> None:
        self._gate = gate
        self._is_read_only = is_read_only

    def __enter__(self) -> None:
        self._gate._enter(self._is_read_only)

    def __exit__(self, *exc: object) -> None:
        self._gate._leave()
