"""Slots for downloads: shares of registries, and a place apart for what is slow."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from cri_shim.image.download_slots import DownloadSlot, DownloadSlots

pytestmark = pytest.mark.asyncio


class Downloads:
    """Downloads under way, by a name, each with its slot as soon as it has one."""

    def __init__(self, slots: DownloadSlots) -> None:
        self._slots = slots
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self.running: dict[str, DownloadSlot] = {}

    async def begin(self, *names: str) -> None:
        """The registry is what comes before the first digit."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._download(name))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        for _ in range(3):
            await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait([self._tasks[name]])

    async def _download(self, name: str) -> None:
        async with AsyncExitStack() as stack:
            slot = await stack.enter_async_context(self._slots.slot(name.rstrip("0123456789")))
            self.running[name] = slot
            stack.callback(self.running.pop, name)
            await self._ends[name].wait()


async def test_a_registry_gets_its_share_and_another_one_finds_a_slot() -> None:
    downloads = Downloads(DownloadSlots(4, of_one_registry=3, slow=0, slow_of_one=0))
    await downloads.begin("a1", "a2", "a3", "a4", "b1", "b2")
    assert set(downloads.running) == {"a1", "a2", "a3", "b1"}
    await downloads.end("b1")
    assert set(downloads.running) == {"a1", "a2", "a3", "b2"}
    await downloads.end("a2")
    assert set(downloads.running) == {"a1", "a3", "a4", "b2"}
    await downloads.end("a1", "a3", "a4", "b2")
    assert not downloads.running


async def test_who_is_slow_makes_room_as_far_as_slow_ones_may_be() -> None:
    downloads = Downloads(DownloadSlots(2, of_one_registry=2, slow=3, slow_of_one=2))
    await downloads.begin("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    assert downloads.running["a1"].give_back()
    assert downloads.running["a1"].give_back()  # once is enough
    assert downloads.running["a2"].give_back()
    await downloads.begin()
    assert set(downloads.running) == {"a1", "a2", "a3", "a4"}
    assert not downloads.running["a3"].give_back()  # two of this registry are slow already
    await downloads.end("a3", "a4")
    assert set(downloads.running) == {"a1", "a2", "b1", "b2"}
    assert downloads.running["b1"].give_back()
    assert not downloads.running["b2"].give_back()  # three in all are slow
    await downloads.end("a1")
    assert downloads.running["b2"].give_back()
    await downloads.begin()
    assert set(downloads.running) == {"a2", "b1", "b2", "c1"}


async def test_who_stops_waiting_takes_nothing_along() -> None:
    downloads = Downloads(DownloadSlots(1, of_one_registry=1, slow=0, slow_of_one=0))
    await downloads.begin("a1", "a2", "b1", "b2")
    await downloads.cancel("b1")
    await downloads.end("a1")
    assert set(downloads.running) == {"a2"}
    await downloads.cancel("a2")
    await downloads.begin()
    assert set(downloads.running) == {"b2"}


async def test_a_slot_that_comes_with_the_cancellation_goes_to_the_next() -> None:
    slots = DownloadSlots(1, of_one_registry=1, slow=0, slow_of_one=0)
    downloads = Downloads(slots)
    await downloads.begin("a1", "a2", "a3")
    downloads._ends["a1"].set()
    await asyncio.sleep(0)  # a1 is over and a2 has the slot, but has not run
    await downloads.cancel("a2")
    await downloads.begin()
    assert set(downloads.running) == {"a3"}
