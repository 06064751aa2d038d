"""The inspecting process: right answers, told errors, and gone when nobody asks any more."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError
from cri_shim.image.integrity.inspection import Inspection
from cri_shim.image.integrity.seal import seal_of
from cri_shim.image.manifest import digest_of

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.process import Reaper

pytestmark = pytest.mark.asyncio
BIG_BYTES = 80 << 20


def quiet(_: int) -> None:
    """Nobody listens."""


async def test_seals_digests_and_errors_come_back_from_one_process(
    reaper: Reaper, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("tree/file")
    told: list[int] = []
    with (tmp_path / "big").open("wb") as big:
        big.truncate(BIG_BYTES)
    async with Inspection(reaper) as inspection:
        assert await inspection.seal(tree, quiet) == seal_of(tree, quiet)
        assert await inspection.digest(tree / "file", quiet) == digest_of(b"data")
        with pytest.raises(FileNotFoundError):
            await inspection.seal(tmp_path / "absent", quiet)
        with pytest.raises(OSError, match="symbolic links"):
            await inspection.digest(tmp_path / "link", quiet)
        with pytest.raises(OSError, match="not a regular file"):
            await inspection.digest(tree, quiet)
        await inspection.digest(tmp_path / "big", told.append)
        assert inspection.read_bytes == 8 + BIG_BYTES
    assert told == [32 << 20, 64 << 20]


async def test_an_inspection_that_asked_nothing_started_nothing(reaper: Reaper) -> None:
    async with Inspection(reaper) as inspection:
        pass
    assert inspection.read_bytes == 0


async def test_a_cancelled_question_ends_the_process(reaper: Reaper, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
    reached = asyncio.Event()

    async def ask() -> None:
        async with Inspection(reaper) as inspection:
            await inspection.digest(tmp_path / "huge", lambda _: reached.set())

    asking = asyncio.create_task(ask())
    await asyncio.wait_for(reached.wait(), 20)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not reaper.children


async def test_a_process_that_dies_is_an_error(reaper: Reaper, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with Inspection(reaper) as inspection:
        await inspection.digest(tmp_path / "file", quiet)
        assert inspection.pid is not None
        os.kill(inspection.pid, 9)
        with pytest.raises(CriShimError, match="inspector process failed"):
            await inspection.digest(tmp_path / "file", quiet)
