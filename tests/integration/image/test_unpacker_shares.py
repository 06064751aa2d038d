"""Layers that take as long as their makers like: other images are unpacked meanwhile."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.image.unpack.client import Unpacker
from tests.images import file, tar_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.host.process import Reaper

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
NEVER_S = 1000.0


class Layers:
    """Layers under way: some that never end, by the image that has them."""

    def __init__(self, unpacker: Unpacker, directory: Path) -> None:
        self._unpacker = unpacker
        self._directory = directory
        self._tasks: list[asyncio.Task[None]] = []
        self._count = 0

    async def never_ending(self, image: str) -> Path:
        """Begin one; where it is unpacked, as far as it gets."""
        receiving, sending = os.pipe()
        os.write(sending, tar_of([file("begun"), file("rest", bytes(100_000))])[:20_000])
        root = self._new_root()

        async def unpack() -> None:
            try:
                await self._unpack(receiving, root, image)
            finally:
                os.close(receiving)
                os.close(sending)

        self._tasks.append(asyncio.ensure_future(unpack()))
        await asyncio.sleep(0)
        return root

    async def whole(self, image: str) -> None:
        """Unpack one, from its beginning to its end."""
        blob = self._directory / "blob"
        blob.write_bytes(tar_of([file("whole")]))
        root = self._new_root()
        fd = os.open(blob, os.O_RDONLY)
        try:
            await self._unpack(fd, root, image)
        finally:
            os.close(fd)
        assert (root / "whole").exists()

    async def _unpack(self, source: int, root: Path, image: str) -> None:
        fd = os.open(root, os.O_RDONLY)
        try:
            await self._unpacker.unpack_layer(source, fd, what="layer", owner=image)
        finally:
            os.close(fd)

    def _new_root(self) -> Path:
        self._count += 1
        root = self._directory / str(self._count)
        root.mkdir()
        return root

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def layers_of(reaper: Reaper, directory: Path, slow_after_s: float) -> AsyncIterator[Layers]:
    unpacker = Unpacker(reaper, max_parallel=2, slow_after_s=slow_after_s)
    layers = Layers(unpacker, directory)
    try:
        yield layers
    finally:
        await layers.end()
        await unpacker.close()


async def begun(root: Path) -> None:
    async with asyncio.timeout(30):
        while not (root / "rest").exists():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.01)


async def test_an_image_has_its_share_of_the_children(reaper: Reaper, tmp_path: Path) -> None:
    async with layers_of(reaper, tmp_path, NEVER_S) as layers:
        first = await layers.never_ending("image a")
        second = await layers.never_ending("image a")
        await layers.whole("image b")
        await begun(first)
        assert not list(second.iterdir())


async def test_who_is_slow_makes_room_and_steps_aside(reaper: Reaper, tmp_path: Path) -> None:
    async with layers_of(reaper, tmp_path, 0.2) as layers:
        slow = [await layers.never_ending(image) for image in ("image a", "image c", "image d")]
        for root in slow:
            await begun(root)
        await layers.whole("image b")
        assert niceness_inside(slow[0]) == {15}


async def test_unpacking_lets_everyone_else_go_first(reaper: Reaper, tmp_path: Path) -> None:
    async with layers_of(reaper, tmp_path, NEVER_S) as layers:
        root = await layers.never_ending("image a")
        await begun(root)
        assert niceness_inside(root) == {10}


def niceness_inside(root: Path) -> set[int]:
    """Of every thread of the processes that have this as their root."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if not os.path.samefile(process / "root", root):
                continue
            for thread in (process / "task").iterdir():
                found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
        except OSError:
            continue  # it has ended
    return found
