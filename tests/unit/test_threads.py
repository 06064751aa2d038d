"""Threads for blocking calls: one for each, used again, and none that holds another up."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cri_shim.threads import in_thread, under_way
from tests.fakes.clock import until

pytestmark = pytest.mark.asyncio


async def test_what_it_returns_or_raises_is_the_futures() -> None:
    assert await in_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


async def test_threads_are_used_again() -> None:
    before = {await in_thread(threading.get_ident) for _ in range(5)}
    assert len(before) == 1


async def test_many_that_hang_leave_threads_for_everyone_else() -> None:
    may_end = threading.Event()
    hung = [in_thread(lambda: may_end.wait(20)) for _ in range(50)]
    try:
        assert await in_thread(lambda: 7) == 7
        assert not any(each.done() for each in hung)
    finally:
        may_end.set()
    assert all(await asyncio.gather(*hung))


async def test_calls_that_have_not_come_back_are_counted() -> None:
    await until(lambda: under_way() == 0)  # what other tests left
    may_end = threading.Event()
    hung = [in_thread(lambda: may_end.wait(20)) for _ in range(3)]
    assert under_way() == 3
    may_end.set()
    await asyncio.gather(*hung)
    await until(lambda: under_way() == 0)
