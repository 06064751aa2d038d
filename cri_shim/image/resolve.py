"""From a reference to one image for this machine: manifest, indexes on the way, configuration, all checked.

Rules: a document is taken for what it says inside; where the registry's Content-Type says otherwise it is refused. What
an index leads to has the digest and size that the index says. How deep indexes go is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cri_shim.errors import BadArchiveError
from cri_shim.image.arrival import PlannedImage, PlannedLayer, checked_config
from cri_shim.image.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    OCI_MANIFEST,
    Index,
    Manifest,
    choose_manifest,
    parse_document,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.image.manifest import Descriptor, Platform
    from cri_shim.image.reference import Reference

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

    async def manifest(self, wanted: str, max_bytes: int) -> FetchedManifest:
        """The manifest or index of a tag or digest."""

    async def document(self, blob: Descriptor, max_bytes: int) -> bytes:
        """A small blob, whole."""


@dataclass(frozen=True, slots=True)
class _Found:
    manifest: Manifest
    fetched: FetchedManifest
    top_digest: str


async def resolve(
    registry: Documents,
    reference: Reference,
    platform: Platform,
    stored: Callable[[str, int], bytes | None],
) -> PlannedImage:
    """The image that `reference` means on `platform`, with the names it shall have here.

    `stored` gives a blob of at most so many bytes that is here already. Raises BadArchiveError for what can't be run,
    and what the registry raises.
    """
    found = await _find_manifest(registry, reference, platform)
    config = found.manifest.config
    if config.size > MAX_CONFIG_BYTES:
        raise BadArchiveError(
            f"{reference}: its configuration has {config.size} bytes; at most {MAX_CONFIG_BYTES} are read"
        )
    config_bytes = stored(config.digest, MAX_CONFIG_BYTES)
    if config_bytes is None:
        config_bytes = await registry.document(config, MAX_CONFIG_BYTES)
    if len(config_bytes) != config.size:
        raise BadArchiveError(
            f"{reference}: its manifest promises {config.size} bytes of {config.digest}, which has {len(config_bytes)}"
        )
    checked = checked_config(config_bytes, found.manifest, platform)
    content_type = found.fetched.content_type
    return PlannedImage(
        names=_names(reference, found.top_digest),
        manifest=found.fetched.data,
        manifest_type=found.manifest.media_type
        or (content_type if content_type in MANIFEST_TYPES else OCI_MANIFEST),
        config=checked,
        config_bytes=config_bytes,
        layers=tuple(
            PlannedLayer(diff_id, blob, blob.digest.removeprefix("sha256:"))
            for diff_id, blob in zip(checked.diff_ids, found.manifest.layers, strict=True)
        ),
        # The name by digest is that of what the tag means everywhere, an index for instance: see `_names`.
        by_digest=False,
    )


def _names(reference: Reference, top_digest: str) -> tuple[Reference, ...]:
    """With a digest in the reference nobody has said what its tag means now, so the image doesn't get the tag."""
    by_digest = reference.with_digest(top_digest)
    return (by_digest,) if reference.digest else (reference, by_digest)


async def _find_manifest(registry: Documents, reference: Reference, platform: Platform) -> _Found:
    wanted = reference.digest or reference.tag or ""
    fetched = await registry.manifest(wanted, MAX_MANIFEST_BYTES)
    top_digest = fetched.digest
    for _ in range(_MAX_DEPTH + 1):
        what = f"{reference}: manifest {fetched.digest}"
        document = parse_document(fetched.data, what)
        _check_type(document, fetched.content_type, what)
        if isinstance(document, Manifest):
            return _Found(document, fetched, top_digest)
        entry = choose_manifest(document, platform, what)
        if entry.size > MAX_MANIFEST_BYTES:
            raise BadArchiveError(
                f"{what}: leads to a manifest of {entry.size} bytes; at most {MAX_MANIFEST_BYTES} are read"
            )
        fetched = await registry.manifest(entry.digest, MAX_MANIFEST_BYTES)
        if len(fetched.data) != entry.size:
            raise BadArchiveError(
                f"{what}: promises {entry.size} bytes of {entry.digest}, which has {len(fetched.data)}"
            )
    raise BadArchiveError(f"{reference}: indexes within indexes, more than {_MAX_DEPTH} deep")


def _check_type(document: Manifest | Index, content_type: str, what: str) -> None:
    """What passes for one kind by its header and for the other by its content could fool a scanner."""
    known = content_type in INDEX_TYPES or content_type in MANIFEST_TYPES
    if known and isinstance(document, Index) != (content_type in INDEX_TYPES):
        raise BadArchiveError(f"{what}: the registry calls it {content_type}, which it is not")
