"""Undoes a creation that failed.

Rules:
- The undo of an effect is pushed, with a name, before the effect: an effect that fails may leave something behind.
- An undo is idempotent, and succeeds if there is nothing to undo.
- If an undo fails, it is logged, and the next one runs. The original error is raised.
- A cancellation during the unwinding is raised after it. (`contextlib.AsyncExitStack` would drop the interrupted undo
  silently, and a failing undo would replace the original error.)
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
    """The named undo steps of one creation, run in reverse order unless `commit` was called.

    Use it as `async with Rollback("sandbox 1a2b…") as rollback`. After an unwinding `failed` has the names of the steps
    whose undo failed. The owner then keeps the record, so that a later Stop or Remove completes the work.
    """

    observer: Callable[[str, str], None] | None = None
    """Called with (what, step) at each push and at `commit`. Fault tests set it to fail or kill the daemon there."""

    def __init__(self, what: str) -> None:
        """`what` is the kind and the ID of the object."""
        self._what = what
        concerns(what.rpartition(" ")[2])
        self._steps: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._committed = False
        self.failed: list[str] = []

    def push(self, name: str, undo: Callable[[], Awaitable[None]]) -> None:
        """Add the undo of the effect that comes next."""
        self._steps.append((name, undo))
        reached(name)
        self._observe(name)

    def commit(self) -> None:
        """Mark the creation as complete: nothing will be undone."""
        self._observe("commit")
        self._committed = True
        self._steps.clear()  # the closures refer to this object: break the cycle

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
        log.info(
            "undoing a failed creation",
            what=self._what,
            steps=len(self._steps),
            cause=repr(cause),
        )
        while self._steps:
            name, undo = self._steps.pop()
            try:
                with step(f"undoing {name}"):
                    await undo()
            except Exception as error:  # noqa: BLE001 - a failing undo must not prevent the others
                self.failed.append(name)
                log.error("undo failed", what=self._what, step=name, error=str(error))
