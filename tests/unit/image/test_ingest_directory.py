"""Layers under way: whole or not there, and what is left of those that nobody removes is found."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cri_shim.errors import BadArchiveError
from cri_shim.image.ingest_directory import IngestDirectory
from cri_shim.image.unpack.protocol import LayerReport

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio
DIFF_ID = "sha256:" + "d" * 64


@pytest.fixture
def ingest(tmp_path: Path) -> IngestDirectory:
    (tmp_path / "ingest/of a daemon that died").mkdir(parents=True)
    made = IngestDirectory(tmp_path / "ingest")
    made.open()
    assert list((tmp_path / "ingest").iterdir()) == []
    return made


async def unpack(fd: int) -> LayerReport:
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
    return LayerReport(
        diff_id=DIFF_ID,
        inflated_bytes=1,
        disk_bytes=1,
        inodes=2,
        opaque_dirs=[],
        implied_dirs=[],
        whiteout_dirs=[],
        dropped_xattrs=1,
    )


async def test_a_layer_is_there_while_it_is_used_and_stays_if_it_was_moved(
    ingest: IngestDirectory, tmp_path: Path
) -> None:
    with capture_logs() as logs:
        async with ingest.unpacked(DIFF_ID, unpack) as (directory, report):
            assert (report.inodes, (directory / "file").exists()) == (2, True)
            assert ingest.leftovers() == []  # somebody works on it
    assert [line["count"] for line in logs] == [1]
    assert not directory.exists()
    async with ingest.unpacked(DIFF_ID, unpack) as (directory, _):
        directory.rename(tmp_path / "kept")
    assert (tmp_path / "kept/file").exists()
    assert ingest.leftovers() == []


async def test_other_bytes_than_were_promised_leave_nothing(
    ingest: IngestDirectory, tmp_path: Path
) -> None:
    with pytest.raises(BadArchiveError, match="is damaged or truncated"):
        async with ingest.unpacked("sha256:" + "e" * 64, unpack):
            pytest.fail("it is not that layer")
    assert list((tmp_path / "ingest").iterdir()) == []


async def test_a_cancelled_unpacking_leaves_nothing(
    ingest: IngestDirectory, tmp_path: Path
) -> None:
    begun = asyncio.Event()

    async def hang(_fd: int) -> LayerReport:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> None:
        async with ingest.unpacked(DIFF_ID, hang):
            pytest.fail("it never ends")

    working = asyncio.ensure_future(work())
    await begun.wait()
    working.cancel()
    await asyncio.wait([working])
    assert list((tmp_path / "ingest").iterdir()) == []


async def test_what_was_taken_is_a_leftover_once_it_is_abandoned(
    ingest: IngestDirectory, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = ingest.take(tmp_path / "one"), ingest.take(tmp_path / "other")
    assert one is not None
    assert other is not None
    assert ingest.leftovers() == []
    ingest.abandon([one])
    assert ingest.leftovers() == [one]
    await ingest.delete([other, *ingest.leftovers()])
    assert list((tmp_path / "ingest").iterdir()) == []


async def test_what_can_not_be_moved_is_said_and_what_is_gone_is_taken(
    ingest: IngestDirectory, tmp_path: Path
) -> None:
    assert ingest.take(tmp_path / "gone") is not None
    with capture_logs() as logs:
        assert ingest.take(tmp_path) is None  # below itself
    assert [line["event"] for line in logs] == ["a layer's directory can't be moved"]
