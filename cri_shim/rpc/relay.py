"""Sends the progress of a piece of work to a client, without slowing the work down to the client's speed.

Rules:
- Per subject only the latest message is kept. Earlier unsent ones are dropped; the last one is always sent.
- A `send` under way is awaited to its end, also if the work fails: grpc never finishes a call whose write was
  cancelled. Hence `gather` and not a TaskGroup, which would cancel the sender.
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
    """Holds the messages that wait to be sent, at most one per subject."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, M] = {}
        self._news = asyncio.Event()
        self._over = asyncio.Event()

    def tell(self, about: Hashable, message: M) -> None:
        """Queue `message`; it replaces an unsent one with the same subject `about`. Cheap to call often."""
        self._waiting[about] = message
        self._news.set()

    async def run(
        self, work: Callable[[], Awaitable[T]], send: Callable[[M], Awaitable[None]]
    ) -> T:
        """Run the work and send queued messages meanwhile, at most every `INTERVAL_S`. Call it once per relay.

        Returns the work's result. Raises what the work raises, else what `send` raises.
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
                pass  # the work goes on
