"""Undoing a creation that failed half-way.

Rules:
- Push the undo, with a name, *before* the effect: an effect may fail half-way and leave something behind.
- An undo is idempotent and succeeds on what is not there.
- A failing undo is logged and the next one runs; the original error stays the one that is raised.
- Once unwinding has begun a cancellation waits until it is done (`contextlib.AsyncExitStack` would drop the
  interrupted step without a word, and lets a failing step replace the cause).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

import structlog

from cri_shim.operations import concerns, reached, step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

log = structlog.get_logger()


class Rollback:
    """Named undo steps of one creation, run in reverse unless `commit` was reached.

    Use it as `async with Rollback("sandbox 1a2b…") as rollback`. After an unwinding, `failed` holds the names of
    the steps whose undo failed: the owner keeps its record so that a later Stop or Remove finishes the work.
    """

    observer: Callable[[str, str], None] | None = None
    """Told (what, step) at each push and at `commit`; fault campaigns set it to stop or kill there."""

    def __init__(self, what: str) -> None:
        """`what` is a kind and an ID."""
        self._what = what
        concerns(what.rpartition(" ")[2])
        self._steps: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._committed = False
        self.failed: list[str] = []

    def push(self, name: str, undo: Callable[[], Awaitable[None]]) -> None:
        """Note how to undo the effect that comes next."""
        self._steps.append((name, undo))
        reached(name)
        self._observe(name)

    def commit(self) -> None:
        """The creation is complete: nothing will be undone."""
        self._observe("commit")
        self._committed = True
        self._steps.clear()  # they hold all that an undoing needs, this object among it

    def _observe(self, step: str) -> None:
        observer = type(self).observer
        if observer is not None:
            observer(self._what, step)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._committed:
            return
        unwinding = asyncio.create_task(self._unwind(exc))
        cancelled: asyncio.CancelledError | None = None
        while not unwinding.done():
            try:
                await asyncio.shield(unwinding)
            except asyncio.CancelledError as late:
                cancelled = late
        unwinding.result()
        if cancelled is not None and exc is None:
            raise cancelled

    async def _unwind(self, cause: BaseException | None) -> None:
        log.info("undoing", what=self._what, steps=len(self._steps), cause=repr(cause))
        while self._steps:
            name, undo = self._steps.pop()
            try:
                with step(f"undoing {name}"):
                    await undo()
            except Exception as error:  # noqa: BLE001 - one failing undo must not stop the others
                self.failed.append(name)
                log.error("undo failed", what=self._what, step=name, error=str(error))
