"""From a reference to one image for this machine: manifest, indexes on the way, configuration, all checked.

Rules: a document is taken for what it says inside; where the registry's Content-Type says otherwise it is refused. What
an index leads to has the digest and size that the index says. How deep indexes go is bounded. Documents are read
elsewhere (`document_reader`).
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
"""An index in an index in an index is still meant; more is a puzzle."""


class FetchedManifest(Protocol):
    """A manifest or an index as a registry sent it, checked against its digest."""

    @property
    def data(self) -> bytes:
        """The document."""

    @property
    def content_type(self) -> str:
        """What the registry called it."""

    @property
    def digest(self) -> str:
        """Its digest."""


class Documents(Protocol):
    """The part of a registry that has documents; errors are those of `registry.Registry`."""

    async def manifest(
        self, wanted: str, max_bytes: int, check: Callable[[FetchedManifest], Awaitable[None]]
    ) -> FetchedManifest:
        """The manifest or index of a tag or digest; one that `check` does not let pass is its sender's fault."""

    async def document(self, blob: Descriptor, max_bytes: int) -> bytes:
        """A small blob, whole."""


@dataclass(frozen=True, slots=True)
class _Found:
    manifest: Manifest
    document: PlannedDocument
    content_type: str
    top_digest: str
    chosen: bool
    """Whether an index said that it is for this machine."""


async def resolve(
    registry: Documents,
    reference: Reference,
    reader: DocumentReader,
    stored: Callable[[str, int], Awaitable[bytes | None]],
) -> PlannedImage:
    """The image that `reference` means on the reader's platform, with the names it shall have here.

    `stored` gives a blob of at most so many bytes that is here already. Raises BadArchiveError for what can't be run,
    and what the registry and the reader raise.
    """
    found = await _find_manifest(registry, reference, reader)
    wanted = found.manifest.config
    if wanted.size > MAX_CONFIG_BYTES:
        raise BadArchiveError(
            f"{reference}: its configuration has {wanted.size} bytes; at most {MAX_CONFIG_BYTES} are read"
        )
    config_bytes = await stored(wanted.digest, MAX_CONFIG_BYTES)
    if config_bytes is None:
        config_bytes = await registry.document(wanted, MAX_CONFIG_BYTES)
    if len(config_bytes) != wanted.size:
        raise BadArchiveError(
            f"{reference}: its manifest promises {wanted.size} bytes of {wanted.digest}, which has {len(config_bytes)}"
        )
    config_document = await reader.keep(config_bytes)
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
        # The name by digest is that of what the tag means everywhere, an index for instance: see `_names`.
        by_digest=False,
    )


def _names(reference: Reference, top_digest: str) -> tuple[Reference, ...]:
    """With a digest in the reference nobody has said what its tag means now, so the image doesn't get the tag."""
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
                f"{what}: promises {size} bytes of {wanted}, which has {len(fetched.data)}"
            )
        document, read = found[fetched.digest]
        content_type = fetched.content_type
        del fetched
        top_digest = top_digest or document.digest
        what = f"{reference}: manifest {document.digest}"
        if read.manifest is not None:
            return _Found(read.manifest, document, content_type, top_digest, chosen)
        if read.entry is None:
            raise CriShimError(f"{what}: the process that read it answered nonsense")
        wanted, size = read.entry.digest, read.entry.size
        chosen = chosen or read.chosen
        if size > MAX_MANIFEST_BYTES:
            raise BadArchiveError(
                f"{what}: leads to a manifest of {size} bytes; at most {MAX_MANIFEST_BYTES} are read"
            )
    raise BadArchiveError(f"{reference}: indexes within indexes, more than {_MAX_DEPTH} deep")
