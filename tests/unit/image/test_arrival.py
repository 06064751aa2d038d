from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import (
    BadArchiveError,
    CriShimError,
    DamagedBlobError,
    ResourceExhaustedError,
)
from cri_shim.image.arrival import storage_error, unpack_layers
from cri_shim.image.jobs import LayerReport
from cri_shim.image.layers import LayerStore
from cri_shim.image.manifest import Descriptor, chain_ids, digest_of
from cri_shim.image.planned import PlannedDocument, PlannedLayer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cri_shim.image.blobs import BlobStore

LAYERS = [
    PlannedLayer(digest_of(b"%d" % n), Descriptor(digest=digest_of(b"b%d" % n), size=1), str(n))
    for n in range(3)
]
CHAIN = chain_ids([layer.diff_id for layer in LAYERS])


class Feed:
    """Unpacks nothing, and fails as it is told."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked: list[PlannedLayer] = []
        self.arrived: list[PlannedLayer] = []

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        self.asked.append(layer)
        assert os.listdir(directory_fd) == []
        os.mkdir("something", dir_fd=directory_fd)
        if self.failures and layer is LAYERS[1]:
            raise self.failures.pop(0)
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

    def put_away(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """Nothing to put away."""

    def put_document_away(self, document: PlannedDocument, blobs: BlobStore) -> None:
        """Nothing to put away."""


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_to_do(number: int) -> None:
    error = storage_error(OSError(number, "full", "/x"), "pulling a")
    assert isinstance(error, ResourceExhaustedError)
    assert "pulling a: " in str(error)
    assert "free some space" in str(error)


def test_another_failure_of_the_host_is_its_own() -> None:
    assert type(storage_error(OSError(errno.EIO, "bad disk"), "pulling a")) is CriShimError
