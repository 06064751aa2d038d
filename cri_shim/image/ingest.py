"""Ingesting images, from an archive or a registry: how their layers are unpacked.

Rules: a planned image's documents are checked and fit each other; its layers' bytes are whatever they are until they
are unpacked. Layers of one image are unpacked side by side; each waits for the one below only to be put in its place.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Protocol

import structlog

from cri_shim.errors import (
    CriShimError,
    DamagedBlobError,
    ResourceExhaustedError,
)
from cri_shim.image.manifest import chain_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.layers import Layer, LayerStore
    from cri_shim.image.planned import PlannedDocument, PlannedLayer
    from cri_shim.image.unpack.protocol import LayerReport

log = structlog.get_logger()
_LAYERS_AT_ONCE = 16
"""Layers of one image under way, each with some descriptors; how many unpack at once is the unpacker's bound."""
TRIES = 3
"""For a layer whose bytes were changed on their way."""


class Feed(Protocol):
    """Where the layers of arriving images come from."""

    @property
    def source(self) -> str:
        """What decides how fast bytes come: feeds that say the same bring the same blob equally well."""

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        """Unpack a layer that is not here yet into an empty directory.

        Raises what `Unpacker.unpack_layer` raises, and DamagedBlobError where another try may bring other bytes.
        """

    def placed(self, layer: PlannedLayer) -> None:
        """It is in its place, by `unpack` or because it was here."""

    async def complete(self, layers: Sequence[PlannedLayer]) -> None:
        """All layers of an image are in their places: have at hand what `commit_layer` needs to keep its blobs.

        Raises what fetching them raises.
        """

    def commit_layer(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """Move its blob to `blobs`, if there is one to move. Blocking; raises OSError."""

    def commit_document(self, document: PlannedDocument, blobs: BlobStore) -> None:
        """Have a manifest or a configuration in `blobs`, if it comes from here. Blocking.

        Raises BadArchiveError for bytes that don't have the digest, OSError.
        """


async def unpack_layers(
    layers: LayerStore, wanted: Sequence[PlannedLayer], chain: Sequence[str], feed: Feed
) -> None:
    """Have every layer in its place, `chain` being their chain ids, which the caller holds.

    Raises the first error of any layer, once all of them have stopped.
    """
    # Tasks start lowest layer first: each waits only for others that have started. Not all of them at once, since an
    # image may have hundreds of layers, and waiting tasks take a megabyte then.
    slots = asyncio.Semaphore(_LAYERS_AT_ONCE)

    async def have_layer(
        layer: PlannedLayer, chain_id: str, source: str, parent: asyncio.Task[Layer] | None
    ) -> Layer:
        try:
            made = await _ensure(layers, layer, chain_id, source, parent, feed)
        finally:
            slots.release()
        feed.placed(layer)
        return made

    try:
        async with asyncio.TaskGroup() as group:
            below: asyncio.Task[Layer] | None = None
            for layer, chain_id, source in zip(wanted, chain, _sources(wanted, feed), strict=True):
                await slots.acquire()
                below = group.create_task(have_layer(layer, chain_id, source, below))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _sources(wanted: Sequence[PlannedLayer], feed: Feed) -> list[str]:
    """Whence each layer comes, with those below, for which it waits: the feed, and what the image says of the blobs.

    An image may name a diff ID of another one beside a blob of its maker's choice, or a size that nothing has.
    """
    packed = chain_ids([f"{layer.blob.digest} {layer.blob.size}" for layer in wanted])
    return [f"{feed.source} {blobs}" for blobs in packed]


async def _ensure(
    layers: LayerStore,
    layer: PlannedLayer,
    chain_id: str,
    source: str,
    parent: asyncio.Task[Layer] | None,
    feed: Feed,
) -> Layer:
    for left in reversed(range(TRIES)):
        try:
            return await layers.ensure(
                chain_id,
                layer.diff_id,
                lambda fd: feed.unpack(layer, fd),
                source=source,
                parent=parent,
            )
        except DamagedBlobError as error:
            if not left:
                raise
            log.warning("a layer came damaged and is tried again", error=str(error))
    raise AssertionError("the last try returns or raises")


def storage_error(error: OSError, doing: str) -> CriShimError:
    """What the caller is told of a host that failed while `doing` something."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhaustedError(f"{doing}: {error}; free some space and try again")
    return CriShimError(f"{doing}: {error}")
