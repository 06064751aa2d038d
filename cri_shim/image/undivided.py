"""Blocking work in a thread that a cancellation must not cut off from what follows it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def undivided(work: Callable[[], None], then: Callable[[], None] | None = None) -> None:
    """Run `work` in a thread and, if it succeeds, `then` here; a cancellation is raised only after both.

    Raises what `work` raises.
    """
    working = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError as late:
            cancelled = late
    working.result()
    if then is not None:
        then()
    if cancelled is not None:
        raise cancelled
