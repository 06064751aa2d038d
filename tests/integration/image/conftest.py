"""A real unpacker and a real store, on directories of the test's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.host.process import Reaper
from cri_shim.image.store import ImageStore
from cri_shim.image.unpack.client import Unpacker
from tests.images import stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from cri_shim.image.unpack.protocol import LayerReport


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.open()
    yield reaper
    reaper.close()


@pytest_asyncio.fixture
async def unpacker(reaper: Reaper) -> AsyncIterator[Unpacker]:
    unpacker = Unpacker(reaper)
    yield unpacker
    await unpacker.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What layers are unpacked into."""
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    return root


@pytest.fixture
def unpack(unpacker: Unpacker, root: Path) -> Callable[[bytes], Awaitable[LayerReport]]:
    """Unpacks a blob into `root`."""

    async def run(blob: bytes) -> LayerReport:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return await unpacker.unpack_layer(stream(blob), fd, what="layer of the test")
        finally:
            os.close(fd)

    return run


@pytest_asyncio.fixture
async def store(tmp_path: Path, reaper: Reaper) -> AsyncIterator[ImageStore]:
    store = await ImageStore.open(tmp_path / "images", tmp_path / "layers", reaper)
    yield store
    await store.close()
