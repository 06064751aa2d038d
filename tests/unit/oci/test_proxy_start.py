"""Starting through a proxy: its answer, and what is said where there is none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, DeadlineError, WrongStateError
from cri_shim.oci.proxy_start import START_FIFO, STARTED_FIFO, start_proxied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The proxy's ends."""
    for name in (START_FIFO, STARTED_FIFO):
        os.mkfifo(tmp_path / name)
    ends = tuple(os.open(tmp_path / name, os.O_RDWR) for name in (START_FIFO, STARTED_FIFO))
    yield (ends[0], ends[1])
    for fd in ends:
        os.close(fd)


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (b"0\n", (0, "")),
        (b"128\nwords\nmore", (128, "words\nmore")),
        (b"-9\n", (255, "")),
        (b"nonsense", (255, "")),
    ],
)
async def test_the_answer_is_a_status_and_words(
    tmp_path: Path, proxy: tuple[int, int], answer: bytes, meaning: tuple[int, str]
) -> None:
    os.write(proxy[1], answer)
    assert await start_proxied(tmp_path, "starting", 10) == meaning
    assert os.read(proxy[0], 10) == b"\n"


async def test_no_answer_is_a_deadline(tmp_path: Path, proxy: tuple[int, int]) -> None:
    with pytest.raises(DeadlineError, match=r"starting: no answer within 0.05 s"):
        await start_proxied(tmp_path, "starting", 0.05)


async def test_no_proxy_and_no_fifo_are_said(tmp_path: Path) -> None:
    with pytest.raises(CriShimError, match="starting: No such file"):
        await start_proxied(tmp_path, "starting", 1)
    for name in (START_FIFO, STARTED_FIFO):
        os.mkfifo(tmp_path / name)
    with pytest.raises(WrongStateError, match="has ended"):
        await start_proxied(tmp_path, "starting", 1)
