from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from cri_shim.errors import (
    BadArchiveError,
    DamagedBlobError,
)
from cri_shim.image.ingest import unpack_layers
from cri_shim.image.layers import LayerStore
from cri_shim.image.manifest import Descriptor, chain_ids, digest_of
from cri_shim.image.planned import PlannedDocument, PlannedLayer
from cri_shim.image.unpack.protocol import LayerReport
from tests.fakes.clock import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cri_shim.image.blobs import BlobStore

LAYERS = [
    PlannedLayer(digest_of(b"%d" % n), Descriptor(digest=digest_of(b"b%d" % n), size=1), str(n))
    for n in range(3)
]
OF_ANOTHER_SIZE = Descriptor(digest=LAYERS[0].blob.digest, size=1 << 40)
CHAIN = chain_ids([layer.diff_id for layer in LAYERS])


class Feed:
    """Unpacks nothing, and fails as it is told."""

    def __init__(self, *failures: Exception, source: str = "r.example") -> None:
        self.failures = list(failures)
        self.source = source
        self.held_up: dict[str, asyncio.Event] = {}
        """By diff id: the layer is unpacked once this is set."""
        self.asked: list[PlannedLayer] = []
        self.arrived: list[PlannedLayer] = []

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        self.asked.append(layer)
        assert os.listdir(directory_fd) == []
        os.mkdir("something", dir_fd=directory_fd)
        if self.failures and layer is LAYERS[1]:
            raise self.failures.pop(0)
        if layer.diff_id in self.held_up:
            await self.held_up[layer.diff_id].wait()
        return LayerReport(
            diff_id=layer.diff_id,
            inflated_bytes=1,
            disk_bytes=1,
            inodes=1,
            opaque_dirs=[],
            implied_dirs=[],
            whiteout_dirs=[],
            dropped_xattrs=0,
        )

    def placed(self, layer: PlannedLayer) -> None:
        self.arrived.append(layer)

    async def complete(self, layers: Sequence[PlannedLayer]) -> None:
        """Nothing is kept."""

    def commit_layer(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """Nothing to commit."""

    def commit_document(self, document: PlannedDocument, blobs: BlobStore) -> None:
        """Nothing to commit."""


@pytest.fixture
def layers(tmp_path: Path) -> LayerStore:
    layers = LayerStore(tmp_path / "layers", tmp_path / "records")
    layers.open(tmp_path / "damaged")
    return layers


@pytest.mark.asyncio
async def test_every_layer_is_placed_in_its_order(layers: LayerStore) -> None:
    feed = Feed()
    await unpack_layers(layers, LAYERS, CHAIN, feed)
    assert feed.arrived == LAYERS
    assert [layer.chain_id for layer in layers.stack(CHAIN[-1])] == CHAIN[::-1]


@pytest.mark.asyncio
async def test_a_layer_that_is_here_is_not_asked_for(layers: LayerStore) -> None:
    await unpack_layers(layers, LAYERS[:2], CHAIN[:2], Feed())
    feed = Feed()
    await unpack_layers(layers, LAYERS, CHAIN, feed)
    assert feed.asked == LAYERS[2:]
    assert feed.arrived == LAYERS


@pytest.mark.asyncio
async def test_damaged_bytes_are_asked_for_again_into_an_empty_directory(
    layers: LayerStore,
) -> None:
    feed = Feed(DamagedBlobError("1"), DamagedBlobError("2"))
    await unpack_layers(layers, LAYERS, CHAIN, feed)
    assert feed.asked.count(LAYERS[1]) == 3


@pytest.mark.parametrize(
    ("failures", "tries"),
    [
        ([DamagedBlobError("1"), DamagedBlobError("2"), DamagedBlobError("3")], 3),
        ([BadArchiveError("1")], 1),
    ],
)
@pytest.mark.asyncio
async def test_what_stays_wrong_is_an_error_and_leaves_nothing(
    layers: LayerStore, tmp_path: Path, failures: list[Exception], tries: int
) -> None:
    feed = Feed(*failures)
    with pytest.raises(type(failures[-1]), match=str(failures[-1])):
        await unpack_layers(layers, LAYERS, CHAIN, feed)
    assert feed.asked.count(LAYERS[1]) == tries
    assert list((tmp_path / "layers" / ".ingest").iterdir()) == []


def other_packing(layer: PlannedLayer) -> PlannedLayer:
    blob = Descriptor(digest=digest_of(b"other " + layer.diff_id.encode()), size=1)
    return PlannedLayer(layer.diff_id, blob, "x")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("other.example", LAYERS),
        ("r.example", [other_packing(LAYERS[0]), *LAYERS[1:]]),
        ("r.example", [msgspec.structs.replace(LAYERS[0], blob=OF_ANOTHER_SIZE), *LAYERS[1:]]),
    ],
    ids=["another server", "another packing below", "another size below"],
)
@pytest.mark.asyncio
async def test_a_layer_from_elsewhere_is_waited_for_by_nobody(
    layers: LayerStore, tmp_path: Path, source: str, wanted: list[PlannedLayer]
) -> None:
    slow, good = Feed(source=source), Feed()
    slow.held_up[LAYERS[0].diff_id] = asyncio.Event()
    held_up = asyncio.create_task(unpack_layers(layers, wanted, CHAIN, slow))
    await until(lambda: len(slow.asked) >= len(wanted))
    async with asyncio.timeout(20):
        await unpack_layers(layers, LAYERS, CHAIN, good)
    here = layers.stack(CHAIN[-1])
    assert not held_up.done()
    slow.held_up[LAYERS[0].diff_id].set()
    await held_up
    assert slow.arrived == wanted
    assert layers.stack(CHAIN[-1]) == here
    names = {each.name for each in (tmp_path / "layers").iterdir()}
    assert names == {".ingest", *(layer.name for layer in here)}
    assert list((tmp_path / "layers" / ".ingest").iterdir()) == []


@pytest.mark.asyncio
async def test_of_two_better_copies_the_first_replaces_a_damaged_layer(
    layers: LayerStore, tmp_path: Path
) -> None:
    await unpack_layers(layers, LAYERS[:1], CHAIN[:1], Feed())
    [old] = layers.stack(CHAIN[0])
    layers.mark_damaged(CHAIN[0])
    slow = Feed(source="other.example")
    slow.held_up[LAYERS[0].diff_id] = asyncio.Event()
    held_up = asyncio.create_task(unpack_layers(layers, LAYERS[:1], CHAIN[:1], slow))
    await until(lambda: slow.asked)
    async with asyncio.timeout(20):
        await unpack_layers(layers, LAYERS[:1], CHAIN[:1], Feed())
        [new] = layers.stack(CHAIN[0])
        await layers.seal(CHAIN[0], "sealed")
    slow.held_up[LAYERS[0].diff_id].set()
    await held_up
    [layer] = layers.stack(CHAIN[0])
    assert (layer.name, layer.seal) == (new.name, "sealed")
    names = {each.name for each in (tmp_path / "layers").iterdir()}
    assert names == {".ingest", old.name, new.name}
