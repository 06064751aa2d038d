"""Progress on its way to a client: it may come faster than it can be sent, and the work never waits for it.

Rules:
- Of each thing that is told about, the latest word is kept; what comes in between is skipped. The last word is sent.
- A `send` under way is awaited to its end, also when the work fails: grpc never finishes a call of which a write was
  cut off. So this is no task group, which would cancel the sender.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

INTERVAL_S: Final = 0.1
M = TypeVar("M")
T = TypeVar("T")


class Relay(Generic[M]):
    """Between work that tells and a client that is told."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, M] = {}
        self._news = asyncio.Event()
        self._over = asyncio.Event()

    def tell(self, about: Hashable, message: M) -> None:
        """Send `message`, unless a newer one `about` the same comes first. Cheap to call often."""
        self._waiting[about] = message
        self._news.set()

    async def run(
        self, work: Callable[[], Awaitable[T]], send: Callable[[M], Awaitable[None]]
    ) -> T:
        """Do the work and meanwhile send what is told, at most every `INTERVAL_S`; once per relay.

        Raises what the work raises, else what `send` raises.
        """
        done, sent = await asyncio.gather(
            self._until_over(work), self._send_each(send), return_exceptions=True
        )
        if isinstance(done, BaseException):
            raise done
        if isinstance(sent, BaseException):
            raise sent
        return done

    async def _until_over(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        finally:
            self._over.set()
            self._news.set()

    async def _send_each(self, send: Callable[[M], Awaitable[None]]) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            waiting, self._waiting = self._waiting, {}
            for message in waiting.values():
                await send(message)
            if self._over.is_set() and not self._waiting:
                return
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._over.wait()
            except TimeoutError:
                pass  # not over yet
