"""What a meter tells, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.streaming.meter import INTERVAL_S, Meter

if TYPE_CHECKING:
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio
Told = list[tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]]]


def metered() -> tuple[Meter, Told]:
    told: Told = []
    return Meter(lambda now, more: told.append((now, more))), told


async def test_sessions_are_told_at_once_and_their_end_is() -> None:
    meter, told = metered()
    meter.begun("exec", "spdy/v4")
    meter.begun("exec", "spdy/v4")
    meter.begun("attach", "websocket/v5")
    assert told[-1] == ([("exec", "spdy/v4", 2), ("attach", "websocket/v5", 1)], [])
    meter.ended("attach", "websocket/v5")
    assert told[-1] == ([("exec", "spdy/v4", 2), ("attach", "websocket/v5", 0)], [])
    meter.ended("exec", "spdy/v4")
    assert told[-1] == ([("exec", "spdy/v4", 1)], [])  # what is over is told once


async def test_bytes_are_told_together_after_a_while(clock: MovableClock) -> None:
    meter, told = metered()
    for _ in range(100):
        meter.carried("exec", "out", 10)
    meter.carried("exec", "in", 0)
    assert told == []
    await clock.sleep(INTERVAL_S / 2)
    assert told == []
    await clock.sleep(INTERVAL_S)
    assert told == [([], [("exec", "out", 1000)])]
    await clock.sleep(10 * INTERVAL_S)
    assert len(told) == 1  # nothing new


async def test_what_a_session_carried_is_told_no_later_than_its_end(clock: MovableClock) -> None:
    meter, told = metered()
    meter.begun("exec", "spdy/v4")
    meter.carried("exec", "in", 7)
    meter.ended("exec", "spdy/v4")
    assert told[-1] == ([("exec", "spdy/v4", 0)], [("exec", "in", 7)])
    await clock.sleep(2 * INTERVAL_S)
    assert len(told) == 2  # and not again
