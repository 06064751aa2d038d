"""Resolve a reference to one image for this platform: manifest, indexes on the way, and configuration, all checked.

Rules: a document's content says what it is; if the registry's Content-Type disagrees, it is refused. A document that an
index refers to must have the digest and size that the index states. The depth of nested indexes is bounded. Another
process parses the documents (`unpack/document_reader`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cri_shim.errors import BadArchiveError, CriShimError
from cri_shim.image.manifest import (
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    OCI_MANIFEST,
)
from cri_shim.image.planned import PlannedImage, PlannedLayer
from cri_shim.image.platforms import check_config

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.image.manifest import Descriptor, Manifest
    from cri_shim.image.planned import PlannedDocument
    from cri_shim.image.reference import Reference
    from cri_shim.image.unpack.document_reader import DocumentReader
    from cri_shim.image.unpack.protocol import ManifestReport

_MAX_DEPTH = 4
"""Indexes within indexes. Real images nest two or three."""


class FetchedManifest(Protocol):
    """A manifest or an index as a registry sent it, checked against its digest."""

    @property
    def data(self) -> bytes:
        """The document's bytes."""

    @property
    def content_type(self) -> str:
        """The registry's Content-Type."""

    @property
    def digest(self) -> str:
        """The document's digest."""


class Documents(Protocol):
    """The registry, as far as documents go. It raises the errors of `registry.client.Registry`."""

    async def manifest(
        self, wanted: str, max_bytes: int, check: Callable[[FetchedManifest], Awaitable[None]]
    ) -> FetchedManifest:
        """The manifest or index of a tag or digest. If `check` refuses a document, the next server is asked."""

    async def document(self, blob: Descriptor, max_bytes: int) -> bytes:
        """A small blob, complete."""


@dataclass(frozen=True, slots=True)
class _Found:
    manifest: Manifest
    document: PlannedDocument
    content_type: str
    top_digest: str
    chosen: bool
    """Whether an index listed the manifest for this platform."""


async def resolve(
    registry: Documents,
    reference: Reference,
    reader: DocumentReader,
    stored: Callable[[str, int], Awaitable[bytes | None]],
) -> PlannedImage:
    """Resolve `reference` to an image for the reader's platform, with the names that it gets on this node.

    `stored` returns a blob that is here already, of at most the given size. Raises BadArchiveError for an image that
    can't run here, and what the registry and the reader raise.
    """
    found = await _find_manifest(registry, reference, reader)
    wanted = found.manifest.config
    if wanted.size > MAX_CONFIG_BYTES:
        raise BadArchiveError(
            f"{reference}: its configuration has {wanted.size} bytes; the limit is {MAX_CONFIG_BYTES}"
        )
    config_bytes = await stored(wanted.digest, MAX_CONFIG_BYTES)
    if config_bytes is None:
        config_bytes = await registry.document(wanted, MAX_CONFIG_BYTES)
    if len(config_bytes) != wanted.size:
        raise BadArchiveError(
            f"{reference}: its manifest states {wanted.size} bytes for {wanted.digest}, which has {len(config_bytes)}"
        )
    config_document = await reader.keep(config_bytes)
    # Up to 4 MiB, which need not stay in memory while the child parses the file.
    del config_bytes
    config = await reader.config(config_document, f"image config {wanted.digest}")
    check_config(config, found.manifest, reader.platform, chosen=found.chosen)
    return PlannedImage(
        names=_names(reference, found.top_digest),
        manifest=found.document,
        manifest_type=found.manifest.media_type
        or (found.content_type if found.content_type in MANIFEST_TYPES else OCI_MANIFEST),
        annotations=found.manifest.annotations,
        config_document=config_document,
        config=config,
        layers=tuple(
            PlannedLayer(diff_id, blob, blob.digest.removeprefix("sha256:"))
            for diff_id, blob in zip(config.diff_ids, found.manifest.layers, strict=True)
        ),
        # The digest name is that of what the tag points to, which may be an index: `_names` adds it.
        by_digest=False,
    )


def _names(reference: Reference, top_digest: str) -> tuple[Reference, ...]:
    """The image's names. With a digest in the reference, the registry did not say what the tag means: no tag then."""
    by_digest = reference.with_digest(top_digest)
    return (by_digest,) if reference.digest else (reference, by_digest)


async def _find_manifest(
    registry: Documents, reference: Reference, reader: DocumentReader
) -> _Found:
    wanted = reference.digest or reference.tag or ""
    top_digest = what = ""
    chosen = False
    found: dict[str, tuple[PlannedDocument, ManifestReport]] = {}

    async def check(fetched: FetchedManifest) -> None:
        document = await reader.keep(fetched.data)
        report = await reader.manifest(
            document, f"manifest {document.digest}", fetched.content_type
        )
        found[document.digest] = document, report

    size: int | None = None
    for _ in range(_MAX_DEPTH + 1):
        fetched = await registry.manifest(wanted, MAX_MANIFEST_BYTES, check)
        if size is not None and len(fetched.data) != size:
            raise BadArchiveError(
                f"{what}: states {size} bytes for {wanted}, which has {len(fetched.data)}"
            )
        document, read = found[fetched.digest]
        content_type = fetched.content_type
        del fetched
        top_digest = top_digest or document.digest
        what = f"{reference}: manifest {document.digest}"
        if read.manifest is not None:
            return _Found(read.manifest, document, content_type, top_digest, chosen)
        if read.entry is None:
            raise CriShimError(
                f"{what}: the process that parsed it returned neither a manifest nor an entry"
            )
        wanted, size = read.entry.digest, read.entry.size
        chosen = chosen or read.chosen
        if size > MAX_MANIFEST_BYTES:
            raise BadArchiveError(
                f"{what}: leads to a manifest of {size} bytes; the limit is {MAX_MANIFEST_BYTES}"
            )
    raise BadArchiveError(f"{reference}: indexes within indexes, more than {_MAX_DEPTH} deep")
