"""Tasks that nobody waits for: owned here, their failures logged, ended together when the daemon stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = structlog.get_logger()
T = TypeVar("T")


class Background:
    """Owns tasks; a failing one is logged and hurts no other."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Run `work` on its own; whatever it raises is logged under `name`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", work=task.get_name(), exc_info=error)

    async def close(self, grace_s: float) -> None:
        """Let what runs end within `grace_s` seconds, then cancel it and wait."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)


async def side_by_side(
    first: Coroutine[object, object, None], second: Coroutine[object, object, T]
) -> T:
    """Run both at once and return what `second` does.

    If one fails the other is cancelled and waited for, and that first error is raised alone.
    """
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(first)
            result = group.create_task(second)
    except BaseExceptionGroup as errors:
        for extra in errors.exceptions[1:]:
            log.warning("failed as well", error=str(extra))
        raise errors.exceptions[0] from None
    return result.result()
