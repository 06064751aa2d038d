"""A client's work, which is asynchronous, in a test, which is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def within(seconds: float, work: Coroutine[object, object, T]) -> T:
    """Run it on a loop of its own. Raises: TimeoutError, and what it raises."""

    async def limited() -> T:
        async with asyncio.timeout(seconds * SLOWNESS):
            return await work

    return asyncio.run(limited())
