"""Work that a cancellation must not divide."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cri_shim.image.undivided import undivided


@pytest.mark.asyncio
async def test_a_cancellation_waits_for_the_work_and_for_what_follows() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        go_on.wait(10)
        done.append("work")

    task = asyncio.get_running_loop().create_task(undivided(work, lambda: done.append("then")))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["work", "then"]


@pytest.mark.asyncio
async def test_what_follows_is_left_out_when_the_work_fails() -> None:
    followed = False

    def follow() -> None:
        nonlocal followed
        followed = True

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await undivided(fail, follow)
    assert not followed
