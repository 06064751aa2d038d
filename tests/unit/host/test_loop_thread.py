"""A loop in a thread, used from another loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cri_shim.host.loop_thread import LoopThread, on_loop

pytestmark = pytest.mark.asyncio


async def where() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


async def test_work_runs_there_and_its_result_comes_here() -> None:
    thread = LoopThread("apart")
    thread.start()
    assert await thread.run(where()) == "apart"
    here = asyncio.get_running_loop()

    async def and_back() -> str:
        return await on_loop(here, where())

    assert await thread.run(and_back()) == threading.current_thread().name
    await thread.stop()
    await thread.stop()
    assert "apart" not in {each.name for each in threading.enumerate()}


async def test_errors_come_here_as_well() -> None:
    async def fail() -> None:
        raise LookupError("there")

    thread = LoopThread("apart")
    thread.start()
    with pytest.raises(LookupError, match="there"):
        await thread.run(fail())
    await thread.stop()


async def test_cancelling_the_one_who_waits_cancels_the_work() -> None:
    cancelled = threading.Event()

    async def hang() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()

    thread = LoopThread("apart")
    thread.start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await thread.run(hang())
    assert await asyncio.to_thread(cancelled.wait, 5)
    await thread.stop()


async def test_stopping_cancels_what_still_runs() -> None:
    thread = LoopThread("apart")
    thread.start()
    left = asyncio.ensure_future(thread.run(asyncio.sleep(600)))
    await asyncio.sleep(0.02)
    await thread.stop()
    with pytest.raises(asyncio.CancelledError):
        await left
