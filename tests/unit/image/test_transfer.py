from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import DamagedBlobError, ResourceExhaustedError
from cri_shim.image.manifest import Descriptor, digest_of
from cri_shim.image.transfer import Transfer
from tests.fakes.clock import turn_over
from tests.fakes.metrics import sample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio

DATA = os.urandom(3 << 20)
BLOB = Descriptor(digest=digest_of(DATA), size=len(DATA))


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "blob", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


async def read(transfer: Transfer, fd: int) -> bytes:
    data = b""
    async for size in transfer.follow():
        data += os.pread(fd, size - len(data), len(data))
    return data


async def test_a_reader_gets_every_byte_whenever_it_begins(fd: int) -> None:
    heard: list[int] = []
    transfer = Transfer(fd, BLOB, what="the layer", tell=heard.append)
    early = asyncio.create_task(read(transfer, fd))
    before = sample("cri_shim_image_pull_bytes_total")
    for start in range(0, len(DATA), 700_000):
        await transfer.write(DATA[start : start + 700_000])
    transfer.finish("r.example")
    assert await early == DATA
    assert await read(transfer, fd) == DATA
    assert os.pread(fd, len(DATA), 0) == DATA
    assert heard == sorted(heard)
    assert heard[-1] == transfer.received == len(DATA)
    assert sample("cri_shim_image_pull_bytes_total") == before + len(DATA)


async def test_a_reader_waits_for_what_has_not_come(fd: int) -> None:
    transfer = Transfer(fd, BLOB, what="the layer", tell=lambda _: None)
    await transfer.write(DATA[:10])
    sizes = transfer.follow()
    assert await anext(sizes) == 10
    following = asyncio.ensure_future(anext(sizes))
    await turn_over()
    assert not following.done()
    await transfer.write(DATA[10:20])
    assert await following == 20
    assert os.pread(fd, 20, 0) == DATA[:20]


async def test_what_comes_with_the_end_while_the_reader_is_busy_is_told(fd: int) -> None:
    transfer = Transfer(fd, BLOB, what="the layer", tell=lambda _: None)
    await transfer.write(DATA[:10])
    sizes = transfer.follow()
    assert await anext(sizes) == 10
    await transfer.write(DATA[10:])
    transfer.finish("r.example")
    assert [size async for size in sizes] == [len(DATA)]


async def test_wrong_bytes_are_found_at_the_end(fd: int) -> None:
    transfer = Transfer(fd, BLOB, what="the layer", tell=lambda _: None)
    await transfer.write(DATA[:-1] + b"\0\0")
    with pytest.raises(
        DamagedBlobError, match=r"the layer: the bytes from r\.example have the digest"
    ) as caught:
        transfer.finish("r.example")
    transfer.fail(caught.value)
    with pytest.raises(DamagedBlobError):
        await read(transfer, fd)


async def test_a_reader_meets_the_error_of_the_transfer(fd: int) -> None:
    transfer = Transfer(fd, BLOB, what="the layer", tell=lambda _: None)
    reading = asyncio.create_task(read(transfer, fd))
    await transfer.write(DATA[:10])
    transfer.fail(ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        await reading


async def test_a_cancelled_transfer_is_an_end_for_the_reader(fd: int) -> None:
    transfer = Transfer(fd, BLOB, what="the layer", tell=lambda _: None)
    reading = asyncio.create_task(read(transfer, fd))
    await transfer.write(DATA[:10])
    transfer.fail(asyncio.CancelledError())
    assert await reading == DATA[:10]


async def test_a_full_disk_is_told_with_the_remedy() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(
            ResourceExhaustedError, match=r"the layer: storing its blob: .*free some space"
        ):
            await Transfer(fd, BLOB, what="the layer", tell=lambda _: None).write(DATA)
    finally:
        os.close(fd)
