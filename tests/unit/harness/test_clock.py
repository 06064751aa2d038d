"""The clock of the unit tests: it jumps from timer to timer, and over no work."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cri_shim.threads import in_thread
from tests.fakes.clock import until

if TYPE_CHECKING:
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio
HOURS_S = 7200.0
SOON_S = 60.0
"""Of the real clock; no test here waits a hundredth of it."""


async def test_hours_take_no_time_and_timers_run_in_their_order(clock: MovableClock) -> None:
    loop, began_s = asyncio.get_running_loop(), time.monotonic()
    real_s = time.perf_counter()
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, loop.time() - began_s))

    loop.call_later(HOURS_S / 2, note, "late")
    loop.call_later(1, note, "early")
    await clock.sleep(HOURS_S)
    assert [name for name, _ in seen] == ["early", "late"]
    assert 1 <= seen[0][1] < HOURS_S / 2 <= seen[1][1] < HOURS_S
    assert time.monotonic() - began_s >= HOURS_S
    assert time.perf_counter() - real_s < SOON_S


async def test_a_move_lets_every_deadline_that_is_past_expire_in_the_next_turn(
    clock: MovableClock,
) -> None:
    waiting = asyncio.ensure_future(asyncio.wait_for(asyncio.Event().wait(), HOURS_S))
    await asyncio.sleep(0)
    clock.move(HOURS_S)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiting, SOON_S)


async def test_without_being_told_it_goes_as_the_real_one(clock: MovableClock) -> None:
    real_s = time.perf_counter()
    before_s = time.monotonic()
    await asyncio.sleep(0.001)
    passed_s = time.monotonic() - before_s
    assert 0.001 <= passed_s <= time.perf_counter() - real_s


@pytest.mark.parametrize("where", ["our threads", "asyncio's threads"])
async def test_it_jumps_over_no_work_in_a_thread(clock: MovableClock, where: str) -> None:
    may_end, began_s = threading.Event(), time.monotonic()
    call = in_thread if where == "our threads" else asyncio.to_thread
    working = asyncio.ensure_future(call(lambda: may_end.wait(SOON_S)))
    asleep = asyncio.ensure_future(clock.sleep(HOURS_S))
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert not asleep.done()
    assert time.monotonic() - began_s < HOURS_S
    may_end.set()
    await asleep
    assert working.done()


async def test_a_thread_that_hangs_is_jumped_over_if_the_test_says_so(clock: MovableClock) -> None:
    may_end = threading.Event()
    working = in_thread(lambda: may_end.wait(SOON_S))
    await clock.sleep(HOURS_S, in_spite_of_threads=True)
    assert not working.done()
    may_end.set()
    await working


async def test_bytes_that_are_there_come_before_the_next_timer(clock: MovableClock) -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(b"x")
        reading = asyncio.ensure_future(asyncio.wait_for(loop.sock_recv(ours, 1), 1))
        await clock.sleep(HOURS_S)
        assert await reading == b"x"


async def test_until_stops_the_clock_where_the_condition_came_to_hold(clock: MovableClock) -> None:
    began_s, came = time.monotonic(), asyncio.Event()
    asyncio.get_running_loop().call_later(HOURS_S, came.set)
    await clock.until(came.is_set, within_s=2 * HOURS_S)
    assert HOURS_S <= time.monotonic() - began_s < 1.5 * HOURS_S
    with pytest.raises(AssertionError, match="within 10 s of the clock"):
        await clock.until(lambda: False, within_s=10)


async def test_two_tasks_cannot_both_move_it(clock: MovableClock) -> None:
    first = asyncio.ensure_future(clock.sleep(HOURS_S))
    await asyncio.sleep(0)
    with pytest.raises(AssertionError, match="two tasks"):
        await clock.sleep(1)
    await first


async def test_who_waits_by_the_real_time_is_not_hurried(clock: MovableClock) -> None:
    clock.move(HOURS_S)
    with pytest.raises(AssertionError, match=r"within 0\.01 s"):
        await until(lambda: False, within_s=0.01)
