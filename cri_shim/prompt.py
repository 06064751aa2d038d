"""A future whose waiters are told in the turn of the loop in which it is done.

asyncio's own calls its callbacks in the next turn, and whoever waits by a future of its own (`background.settled`) runs
one turn later still. A pod's life waits some thirty times, for threads and for children: so many turns are saved.
Rules: used on the loop's thread only. What is told must be short and raise nothing: it sets another future's result.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Prompt(asyncio.Future[T]):
    """A future to be waited for by `background.settled` and `end_of`; by others as any other."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._told: list[Callable[[], None]] = []

    def tell_at_once(self, told: Callable[[], None]) -> None:
        """Call `told` as soon as it is done, which it is not yet."""
        self._told.append(told)

    def tell_no_more(self, told: Callable[[], None]) -> None:
        """Forget `told`; nothing happens where it was called already."""
        if told in self._told:
            self._told.remove(told)

    def set_result(self, result: T) -> None:
        """As any future's; then those who wait are told."""
        super().set_result(result)
        self._tell()

    def set_exception(self, exception: type | BaseException) -> None:
        """As any future's; then those who wait are told."""
        super().set_exception(exception)
        self._tell()

    def cancel(self, msg: object = None) -> bool:
        """As any future's; then those who wait are told."""
        cancelled = super().cancel(msg)
        if cancelled:
            self._tell()
        return cancelled

    def _tell(self) -> None:
        told, self._told = self._told, []
        for each in told:
            each()
