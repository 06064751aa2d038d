"""Images that are to be ingested: what was read in their documents, as plain values that pass between processes.

Rules: whoever made such a value has read hostile bytes, and might be theirs by now: `checked` proves what the daemon
relies on, names, digests and file names. What an image says of itself beyond that is its maker's word anyway.
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
    """Empty where the store has it already."""


class PlannedLayer(msgspec.Struct, frozen=True):
    """One layer of an image that is to be ingested."""

    diff_id: str
    blob: Descriptor
    file: str
    """Name of the file that has, or will have, the blob in the spool directory."""


class PlannedImage(msgspec.Struct, frozen=True):
    """One image that is to be ingested, its documents read and checked, its layers not unpacked yet."""

    names: tuple[Reference, ...]
    manifest: PlannedDocument
    manifest_type: str
    annotations: dict[str, str]
    """The manifest's, as many as are kept."""
    config_document: PlannedDocument
    config: ImageConfig
    layers: tuple[PlannedLayer, ...]
    by_digest: bool
    """Whether it is also known as `repository@digest` of this manifest: the manifest is its maker's, not ours."""


def checked(image: PlannedImage) -> PlannedImage:
    """`image`, if it names files and blobs as we name them. Raises BadArchiveError."""
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
        raise BadArchiveError("the process that read the image's documents answered nonsense")
    return image


def _is_normal(name: Reference) -> bool:
    try:
        return parse_reference(str(name)) == name
    except BadImageReferenceError:
        return False
