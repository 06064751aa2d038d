"""What all unit tests share: a loop and a clock that a test can move."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cri_shim.rollback import Rollback
from tests.fakes.clock import ClockPolicy, MovableClock

if TYPE_CHECKING:
    from collections.abc import Callable

    Observer = Callable[[str, str], None]
    Observe = Callable[[Observer | None], None]

asyncio.set_event_loop_policy(ClockPolicy())


@pytest.fixture
def observe(monkeypatch: pytest.MonkeyPatch) -> Observe:
    """Has each step of every creation told to an observer, from now on and until the test ends."""

    def by(observer: Observer | None) -> None:
        monkeypatch.setattr(Rollback, "observer", observer and staticmethod(observer))

    return by


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovableClock:
    """See `tests.fakes.clock`."""
    return MovableClock(monkeypatch)
