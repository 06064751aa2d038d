from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cri_shim import event_loop

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_S = 0.05


def stalls_of(callback: Callable[[], object]) -> list[tuple[float, float]]:
    """What is told while `callback` has a turn."""
    told: list[tuple[float, float]] = []

    async def main() -> None:
        event_loop.tell_of_stalls(lambda wall_s, cpu_s: told.append((wall_s, cpu_s)))
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)

    event_loop.run(main())
    return told


def compute() -> None:
    end = time.thread_time() + LONG_S
    while time.thread_time() < end:
        pass


def test_a_turn_that_computes_long_is_told_with_its_cpu_time() -> None:
    longest = max(stalls_of(compute), key=lambda stall: stall[1])
    # Two clocks, read one after the other: which of them shows more is chance where nobody else computes.
    assert min(longest) >= LONG_S


def test_a_turn_that_blocks_is_told_and_has_computed_nothing() -> None:
    longest = max(stalls_of(lambda: time.sleep(LONG_S)))
    assert longest[0] >= LONG_S
    assert longest[1] < LONG_S / 2


def test_many_callbacks_of_one_turn_count_together() -> None:
    told: list[float] = []

    async def main() -> None:
        event_loop.tell_of_stalls(lambda wall_s, _: told.append(wall_s))
        for _ in range(10):
            asyncio.get_running_loop().call_soon(time.sleep, LONG_S / 10)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    event_loop.run(main())
    assert max(told) >= LONG_S


def test_waiting_is_no_stall() -> None:
    told: list[float] = []

    async def main() -> None:
        event_loop.tell_of_stalls(lambda _, cpu_s: told.append(cpu_s))
        await asyncio.sleep(LONG_S)

    event_loop.run(main())
    # Where the machine is busy the thread may run late; it has computed nothing then.
    assert sum(told) < event_loop.STALL_S


def test_what_came_before_the_watch_does_not_count() -> None:
    told: list[float] = []

    async def main() -> None:
        compute()
        event_loop.tell_of_stalls(lambda _, cpu_s: told.append(cpu_s))
        await asyncio.sleep(0)

    event_loop.run(main())
    assert sum(told) < LONG_S


def test_the_result_comes_back() -> None:
    async def main() -> int:
        return 7

    assert event_loop.run(main()) == 7
