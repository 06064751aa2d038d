"""Tasks nobody waits for, and two things done side by side."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cri_shim.background import Background, side_by_side, uninterrupted


@pytest.mark.asyncio
async def test_side_by_side_runs_both_and_returns_the_second() -> None:
    met = asyncio.Barrier(2)

    async def first() -> None:
        await met.wait()

    async def second() -> int:
        await met.wait()
        return 7

    assert await side_by_side(first(), second()) == 7


@pytest.mark.asyncio
async def test_side_by_side_raises_the_first_error_bare_after_cancelling_the_other() -> None:
    cancelled = False

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    async def hangs() -> int:
        nonlocal cancelled
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled = True
            raise
        return 0

    with pytest.raises(ValueError, match="first"):
        await side_by_side(fails(), hangs())
    assert cancelled


@pytest.mark.asyncio
async def test_background_failures_hurt_nobody_else() -> None:
    background = Background()
    done: list[str] = []

    async def fails() -> None:
        raise ValueError("alone")

    async def works() -> None:
        done.append("works")

    background.start("fails", fails())
    background.start("works", works())
    await background.close(1)
    assert done == ["works"]


@pytest.mark.asyncio
async def test_background_close_cancels_what_does_not_end() -> None:
    background = Background()
    ended: list[str] = []

    async def hangs() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    background.start("hangs", hangs())
    await asyncio.sleep(0)
    await background.close(0.01)
    assert ended == ["cancelled"]


@pytest.mark.asyncio
async def test_a_cancellation_waits_for_the_effect_in_the_thread() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def effect() -> str:
        begun.set()
        go_on.wait(5)
        done.append("effect")
        return "result"

    async with asyncio.TaskGroup() as group:
        task = group.create_task(uninterrupted(effect))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
    assert task.cancelled()
    assert done == ["effect"]


@pytest.mark.asyncio
async def test_what_the_effect_returns_or_raises_reaches_the_caller() -> None:
    assert await uninterrupted(int, "7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await uninterrupted(int, "seven")
