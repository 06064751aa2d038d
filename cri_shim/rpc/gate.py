"""Admission of calls: refuse them during recovery, count them while they run, drain them at the stop.

    recovering ──open──> open ──drain──> closed
         └────────────────drain────────────^

Calls about the server itself (Version, Operations, health, reflection) and streams of events do not come here: the
interceptor serves them in every phase, and `drain` does not wait for them. In `read_only` only calls that change
nothing are admitted.
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
    """The server's phase."""

    RECOVERING = "recovering"
    OPEN = "open"
    CLOSED = "closed"


class Gate:
    """Counts admitted calls, and refuses calls that arrive too early or too late."""

    def __init__(self) -> None:
        self._phase = Phase.RECOVERING
        self._inside = 0
        self._busy_with = ""
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def phase(self) -> Phase:
        """The server's phase."""
        return self._phase

    @property
    def inside(self) -> int:
        """The number of admitted calls that have not ended."""
        return self._inside

    def open(self) -> None:
        """Admit calls from now on. No effect on a closed gate: a stop during recovery stays a stop."""
        if self._phase is Phase.RECOVERING:
            self._phase = Phase.OPEN

    @contextmanager
    def read_only(self, why: str) -> Iterator[None]:
        """Refuse calls that change something while the block runs, with `why` as the error's text.

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
        """Count one call as inside while the block runs. `is_read_only` marks a call that changes nothing.

        Entering raises NotReadyError before `open`, UnavailableError after `drain` and during `read_only`.
        """
        return _Admission(self, is_read_only)

    def _enter(self, is_read_only: bool) -> None:
        if self._phase is Phase.RECOVERING:
            raise NotReadyError(
                "cri-shim is recovering the pods of its last run; retry in a moment"
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
        """Refuse new calls and wait at most `grace_s` seconds for those inside. Returns how many did not end."""
        self._phase = Phase.CLOSED
        try:
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        except TimeoutError:
            pass  # the return value says how many are left
        return self._inside


class _Admission:
    """Enters and leaves the gate for one call. A class costs less than `@contextmanager`, and every call needs one."""

    __slots__ = ("_gate", "_is_read_only")

    def __init__(self, gate: Gate, is_read_only: bool) -> None:
        self._gate = gate
        self._is_read_only = is_read_only

    def __enter__(self) -> None:
        self._gate._enter(self._is_read_only)

    def __exit__(self, *exc: object) -> None:
        self._gate._leave()
