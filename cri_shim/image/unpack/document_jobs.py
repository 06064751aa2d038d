"""The jobs of an unpacking child that parse one document. Pure; the daemon never runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Index,
    parse_config,
    parse_document,
    without_words,
)
from cri_shim.image.platforms import choose_manifest, names_machine
from cri_shim.image.unpack.protocol import ConfigReport, ManifestReport

if TYPE_CHECKING:
    from cri_shim.image.manifest import Platform


def read_manifest(
    data: bytes, platform: Platform, what: str, content_type: str = ""
) -> ManifestReport:
    """Parse a manifest, or choose an index's entry for `platform`; `what` names the document in errors.

    Raises BadArchiveError: not a manifest, no entry for this platform, or not the kind that `content_type` states.
    """
    document = parse_document(data, what)
    known = content_type in INDEX_TYPES or content_type in MANIFEST_TYPES
    if known and isinstance(document, Index) != (content_type in INDEX_TYPES):
        # A document that is one kind by its header and another by its content could fool a scanner.
        raise BadArchiveError(f"{what}: the registry sent it as {content_type}, which it is not")
    if isinstance(document, Index):
        entry = choose_manifest(document, platform, what)
        return ManifestReport(entry=entry.bare(), chosen=names_machine(entry))
    return ManifestReport(manifest=without_words(document))


def read_config(data: bytes, what: str) -> ConfigReport:
    """Parse an image configuration. Raises as `read_manifest`."""
    return ConfigReport(config=parse_config(data, what))
