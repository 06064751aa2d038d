"""Ingest images from an archive or a registry: the feed that brings their layers, and the order of unpacking.

Rules: a planned image's documents are checked and match each other. Its layers' bytes are unchecked until unpacked.
The layers of one image unpack in parallel; a layer waits for the one below only before it is put in place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from cri_shim.errors import (
    DamagedBlobError,
)
from cri_shim.image.manifest import chain_ids
from cri_shim.image.platforms import platform_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.layers import Layer, LayerStore
    from cri_shim.image.manifest import Platform
    from cri_shim.image.planned import PlannedDocument, PlannedImage, PlannedLayer
    from cri_shim.image.unpack.protocol import LayerReport

log = structlog.get_logger()
_LAYERS_AT_ONCE = 16
"""Layers of one image under way, each with some descriptors. The unpacker bounds how many unpack at once."""
TRIES = 3
"""Attempts for a layer whose bytes arrive damaged."""


class Feed(Protocol):
    """The source of the layers and documents of images that are being ingested."""

    @property
    def source(self) -> str:
        """The party that decides how fast bytes arrive. Feeds with the same source bring the same blob equally well."""

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        """Unpack a layer that is not here yet into an empty directory.

        Raises what `Unpacker.unpack_layer` raises, and DamagedBlobError where another attempt may bring other bytes.
        """

    def placed(self, layer: PlannedLayer) -> None:
        """Note that the layer is in place, by `unpack` or because it was here before."""

    async def complete(self, layers: Sequence[PlannedLayer]) -> None:
        """All layers of an image are in place: fetch what `commit_layer` needs to keep their blobs.

        Raises what fetching them raises.
        """

    def commit_layer(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """Move the layer's blob to `blobs`, if the feed has it. Blocking; raises OSError."""

    def commit_document(self, document: PlannedDocument, blobs: BlobStore) -> None:
        """Put a manifest or configuration into `blobs`, if the feed has it. Blocking.

        Raises BadArchiveError for bytes that don't match the digest, OSError.
        """


async def unpack_layers(
    layers: LayerStore, wanted: Sequence[PlannedLayer], chain: Sequence[str], feed: Feed
) -> None:
    """Have every layer in place. `chain` are their chain IDs, which the caller holds.

    Raises the first error of any layer, after all of them have stopped.
    """
    # Tasks start with the lowest layer, so each waits only for tasks that have started. The semaphore bounds them: an
    # image may have hundreds of layers, and that many waiting tasks take a megabyte.
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
    """The source of each layer, together with those below, for which it waits: the feed and the blobs of the stack.

    The blobs are part of it because an image may claim another image's diff ID for a blob of its own choice.
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
            log.warning("a layer arrived damaged; trying again", error=str(error))
    raise AssertionError("the last try returns or raises")


def warn_of_platforms(planned: Iterable[PlannedImage], platform: Platform) -> None:
    """Log each image that an index gives for `platform` though its configuration names another."""
    for image in planned:
        if problem := platform_problem(image.config, platform):
            log.warning(
                "an image's index and its configuration name different platforms; trusting the index",
                image=next(map(str, image.names), image.config_document.digest),
                problem=problem,
            )
