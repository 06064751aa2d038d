"""What all unit tests share: a loop and a clock that a test can move."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.clock import ClockPolicy, MovableClock

asyncio.set_event_loop_policy(ClockPolicy())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovableClock:
    """See `tests.fakes.clock`."""
    return MovableClock(monkeypatch)
