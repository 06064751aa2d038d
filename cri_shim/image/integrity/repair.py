"""Repair the damage that a check found, fetching only what is damaged.

Rules:
- An unpacked layer whose packed layer is here is unpacked again. Other damage is pulled from the registry by the
  image's digest, so that the same image comes and no tag moves. Built-in images are built again.
- A damaged layer is marked, then ingested like any other: it gets a new directory, its record is switched over, and the
  old directory stays while a container uses it. If the repair fails, the next pull or import of an image with this
  layer repairs it.
- A damaged blob is removed first, so that nothing takes it for a good one.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import BadArchiveError, CorruptStateError, CriShimError
from cri_shim.image.builtin import PAUSE_REFERENCE, pause_archive
from cri_shim.image.integrity.report import Damage, Finding, RepairReport, Unrepaired
from cri_shim.image.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Platform, check_layers
from cri_shim.image.planned import PlannedDocument, PlannedImage, PlannedLayer
from cri_shim.image.reference import RESERVED_DOMAIN
from cri_shim.image.unpack.document_reader import DocumentReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.ingest import Feed
    from cri_shim.image.integrity.report import CheckReport
    from cri_shim.image.model import Image
    from cri_shim.image.store_state import StoreState
    from cri_shim.image.unpack.client import Unpacker
    from cri_shim.image.unpack.protocol import LayerReport

    Ingest = Callable[[Sequence[PlannedImage], Feed], Awaitable[list[Image]]]
    Import = Callable[[AsyncIterator[bytes], str], Awaitable[list[Image]]]
    Pull = Callable[[str], Awaitable[Image]]

log = structlog.get_logger()


class Repairer:
    """Repairs the images of one store."""

    def __init__(
        self,
        state: StoreState,
        unpacker: Unpacker,
        platform: Platform,
        *,
        ingest: Ingest,
        import_archive: Import,
    ) -> None:
        self._state = state
        self._unpacker = unpacker
        self._platform = platform
        self._ingest = ingest
        self._import_archive = import_archive

    async def repair(
        self, manifests: Collection[str], checked: CheckReport, pull: Pull
    ) -> RepairReport:
        """Repair what `checked` found on the images of these manifests. Failures are in the report."""
        damaged = [each for each in checked.findings if each.damage is not Damage.UNVERIFIED]
        self._mark_damaged(damaged)
        reasons: dict[str, str] = {}
        for digest in manifests:
            if self._needs_repair(digest, damaged):
                reasons[digest] = await self._repair_image(digest, pull)
        repaired, left = [], []
        for finding in damaged:
            if self._is_fixed(finding):
                repaired.append(finding)
                log.info(
                    "repaired an image's part", damage=str(finding.damage), object=finding.object
                )
            else:
                left.append(Unrepaired(finding, self._reason(finding, reasons)))
        return RepairReport(checked, tuple(repaired), tuple(left))

    def _mark_damaged(self, damaged: Sequence[Finding]) -> None:
        for finding in damaged:
            match finding.damage:
                case Damage.LAYER_ALTERED | Damage.LAYER_MISSING:
                    self._state.layers.mark_damaged(finding.object)
                case Damage.BLOB:
                    self._state.blobs.forget(finding.object)
                    if self._state.discard_blobs:
                        continue
                    # Marked too, since a pull fetches a blob only together with its layer.
                    for facts in self._state.manifests().values():
                        for chain_id, blob in zip(facts.chain, facts.packed, strict=False):
                            if blob == finding.object:
                                self._state.layers.mark_damaged(chain_id)
                case _:
                    self._state.blobs.forget(finding.object)

    def _needs_repair(self, digest: str, damaged: Sequence[Finding]) -> bool:
        facts = self._state.manifests().get(digest)
        if facts is None:
            return False
        objects = {digest, facts.image_id, *facts.chain, *facts.packed}
        return any(each.object in objects and not self._is_fixed(each) for each in damaged)

    def _is_fixed(self, finding: Finding) -> bool:
        digest = finding.object
        match finding.damage:
            case Damage.LAYER_ALTERED | Damage.LAYER_MISSING:
                layers = self._state.layers
                return layers.get(digest) is not None and not layers.is_damaged(digest)
            case Damage.BLOB:
                return self._state.discard_blobs or digest in self._state.blobs
            case Damage.MANIFEST:
                return digest in self._state.blobs and digest not in self._state.lost
            case _:
                return digest in self._state.blobs

    async def _repair_image(self, digest: str, pull: Pull) -> str:
        """Ingest what the image of this manifest lacks; returns the reason of a failure, or nothing."""
        names = self._state.index.names_of(digest)
        try:
            planned = await self._planned(digest)
            if digest not in self._state.manifests():
                return ""  # the image was removed meanwhile
            if planned is not None:
                await self._ingest([planned], _StoredLayers(self._state.blobs, self._unpacker))
            elif any(name.startswith(f"{RESERVED_DOMAIN}/") for name in names):
                await self._import_archive(pause_archive(), PAUSE_REFERENCE)
            else:
                return await _pull_any([name for name in names if "@" in name], pull)
        except (CriShimError, OSError) as error:
            return str(error)
        return ""

    async def _planned(self, digest: str) -> PlannedImage | None:
        """A plan from stored blobs alone; None if something has to be pulled."""
        state = self._state
        try:
            async with (
                state.spool("reading an image's documents") as spool_fd,
                state.spool("reading an image's documents") as apart_fd,
            ):
                reader = DocumentReader(self._unpacker, self._platform, spool_fd, apart_fd)
                document = await self._stored(digest, MAX_MANIFEST_BYTES, reader)
                manifest = (await reader.manifest(document, f"manifest {digest}")).manifest
                if manifest is None:
                    return None
                config_digest = manifest.config.digest
                config_document = await self._stored(config_digest, MAX_CONFIG_BYTES, reader)
                config = await reader.config(config_document, f"image config {config_digest}")
                check_layers(config, manifest)
        except (CorruptStateError, BadArchiveError):
            return None
        facts = state.manifests().get(digest)
        if facts is None:
            return None  # the image was removed meanwhile
        for chain_id, blob in zip(facts.chain, manifest.layers, strict=False):
            missing = state.layers.get(chain_id) is None
            if (missing or state.layers.is_damaged(chain_id)) and blob.digest not in state.blobs:
                return None
        return PlannedImage(
            names=(),
            manifest=PlannedDocument(digest, document.size),
            manifest_type=state.index.manifests[digest][0],
            annotations=manifest.annotations,
            config_document=PlannedDocument(config_digest, config_document.size),
            config=config,
            layers=tuple(
                PlannedLayer(diff_id, blob, "")
                for diff_id, blob in zip(config.diff_ids, manifest.layers, strict=True)
            ),
            by_digest=False,
        )

    async def _stored(self, digest: str, max_bytes: int, reader: DocumentReader) -> PlannedDocument:
        """Store a document for the reader. Raises CorruptStateError for a damaged one, which is then removed."""
        return await reader.keep(await asyncio.to_thread(self._state.blobs.read, digest, max_bytes))

    def _reason(self, finding: Finding, reasons: dict[str, str]) -> str:
        is_here = False
        for digest, facts in self._state.manifests().items():
            if finding.object in (digest, facts.image_id, *facts.chain, *facts.packed):
                is_here = True
                if reason := reasons.get(digest):
                    return reason
        return (
            "the image was ingested again, but this is still missing"
            if is_here
            else "its image was removed meanwhile"
        )


async def _pull_any(names: Sequence[str], pull: Pull) -> str:
    failures = []
    for name in names:
        try:
            await pull(name)
        except CriShimError as error:
            failures.append(str(error))
        else:
            return ""
    return (
        "; ".join(failures)
        or "the image has no name by digest to pull it by: import or pull it again"
    )


class _StoredLayers:
    """The feed of blobs in the store (`ingest.Feed`)."""

    def __init__(self, blobs: BlobStore, unpacker: Unpacker) -> None:
        self._blobs = blobs
        self._unpacker = unpacker

    @property
    def source(self) -> str:
        """This node's disk."""
        return "stored blobs"

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        """Unpack from the stored blob."""
        digest = layer.blob.digest
        fd = os.open(self._blobs.path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return await self._unpacker.unpack_layer(
                fd, directory_fd, what=f"layer {digest}", owner="an image repair"
            )
        finally:
            os.close(fd)

    def placed(self, layer: PlannedLayer) -> None:
        """Do nothing: a repair reports no progress per layer."""

    async def complete(self, layers: Sequence[PlannedLayer]) -> None:
        """Do nothing: this feed can fetch nothing."""

    def commit_layer(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """Do nothing: the blob is in the store."""

    def commit_document(self, document: PlannedDocument, blobs: BlobStore) -> None:
        """Do nothing: the document is in the store."""
