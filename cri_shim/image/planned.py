"""Images that are about to be ingested: what their documents say, as plain values that pass between processes.

Rules: the process that made such a value has parsed hostile bytes and may be taken over. `checked` verifies what the
daemon relies on: names, digests and file names. Everything else is the image author's claim anyway.
"""

from __future__ import annotations

import msgspec

from cri_shim.errors import BadArchiveError, BadImageReferenceError
from cri_shim.image.manifest import MAX_LAYERS, Descriptor, ImageConfig
from cri_shim.image.reference import Reference, is_digest, parse_reference


class PlannedDocument(msgspec.Struct, frozen=True):
    """A manifest or a configuration, in a file of the spool directory."""

    digest: str
    size: int
    file: str = ""
    """The file's name; empty if the store has the document already."""


class PlannedLayer(msgspec.Struct, frozen=True):
    """One layer of an image that is about to be ingested."""

    diff_id: str
    blob: Descriptor
    file: str
    """The file in the spool directory that has, or will have, the blob."""


class PlannedImage(msgspec.Struct, frozen=True):
    """An image that is about to be ingested: its documents are parsed and checked, its layers not unpacked."""

    names: tuple[Reference, ...]
    manifest: PlannedDocument
    manifest_type: str
    annotations: dict[str, str]
    """The manifest's annotations, as far as they are kept."""
    config_document: PlannedDocument
    config: ImageConfig
    layers: tuple[PlannedLayer, ...]
    by_digest: bool
    """Whether the image also gets the name `repository@digest`: not for a manifest that we generated."""


def checked(image: PlannedImage) -> PlannedImage:
    """Return `image` if its digests, names and file names are valid. Raises BadArchiveError."""
    documents = (image.manifest, image.config_document)
    digests = [document.digest for document in documents]
    digests += [digest for layer in image.layers for digest in (layer.diff_id, layer.blob.digest)]
    files = [each.file for each in documents] + [each.file for each in image.layers]
    sound = (
        all(map(is_digest, digests))
        and all(file.isalnum() and file.isascii() for file in files)
        and len(image.layers) <= MAX_LAYERS
        and image.config.diff_ids == tuple(layer.diff_id for layer in image.layers)
        and all(map(_is_normal, image.names))
    )
    if not sound:
        raise BadArchiveError(
            "the process that parsed the image's documents returned an invalid plan"
        )
    return image


def _is_normal(name: Reference) -> bool:
    try:
        return parse_reference(str(name)) == name
    except BadImageReferenceError:
        return False
