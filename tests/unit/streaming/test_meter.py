"""What a meter tells, and when."""

from __future__ import annotations

import asyncio

import pytest

from cri_shim.streaming import meter as module
from cri_shim.streaming.meter import Meter
from tests.fakes.clock import until

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


async def test_bytes_are_told_together_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.02)
    meter, told = metered()
    for _ in range(100):
        meter.carried("exec", "out", 10)
    meter.carried("exec", "in", 0)
    assert told == []
    await until(lambda: told)
    assert told == [([], [("exec", "out", 1000)])]
    await asyncio.sleep(0.05)
    assert len(told) == 1  # nothing new


async def test_what_a_session_carried_is_told_no_later_than_its_end() -> None:
    meter, told = metered()
    meter.begun("exec", "spdy/v4")
    meter.carried("exec", "in", 7)
    meter.ended("exec", "spdy/v4")
    assert told[-1] == ([("exec", "spdy/v4", 0)], [("exec", "in", 7)])
    assert meter._timer is None
