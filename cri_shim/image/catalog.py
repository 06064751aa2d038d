"""The images that the index names, in memory.

Rules: a catalog is built from an index and the documents behind it, anew for each change, and never modified. So a
reader always sees a consistent list. An image is identified by its configuration's digest: manifests that differ only
in how layers are packed are one image. Images that the index names but that can't be read are not listed.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - msgspec reads the annotations of `Described`
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import BadArchiveError, BadImageReferenceError, CorruptStateError
from cri_shim.image.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    ImageConfig,
    Manifest,
    chain_ids,
    kept_annotations,
    parse_config,
    parse_document,
)
from cri_shim.image.model import Image
from cri_shim.image.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.index import ImageIndex
    from cri_shim.image.layers import LayerStore
    from cri_shim.image.pins import Pins
    from cri_shim.image.planned import PlannedImage

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Described:
    """The image behind a manifest in the index."""

    image_id: str
    """Digest of the configuration."""
    config: ImageConfig
    chain: tuple[str, ...]
    """Chain IDs of its layers, lowest first."""
    packed: tuple[str, ...]
    """Digests of the same layers' blobs."""
    documents_bytes: int
    """Size of manifest and configuration together."""
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Lost:
    """An image in the index that could not be read at start. What is left of it is kept for its repair."""

    reason: str
    image_id: str = ""
    """This and the fields below are empty if the document that has them could not be read."""
    chain: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()


def describe(image: PlannedImage, chain: Sequence[str]) -> Described:
    """Describe an image that was just ingested."""
    return Described(
        image_id=image.config_document.digest,
        config=image.config,
        chain=tuple(chain),
        packed=tuple(layer.blob.digest for layer in image.layers),
        documents_bytes=image.manifest.size + image.config_document.size,
        annotations=image.annotations,
    )


def read_described(manifest_digest: str, blobs: BlobStore, layers: LayerStore) -> Described | Lost:
    """Read the image of `manifest_digest` from its documents."""
    what = f"manifest {manifest_digest}"
    image_id = ""
    packed: tuple[str, ...] = ()
    chain: list[str] = []
    try:
        data = blobs.read(manifest_digest, MAX_MANIFEST_BYTES)
        manifest = parse_document(data, what)
        if not isinstance(manifest, Manifest):
            raise CorruptStateError(f"{what}: it is an index, not an image manifest")
        image_id = manifest.config.digest
        packed = tuple(layer.digest for layer in manifest.layers)
        config = parse_config(blobs.read(image_id, MAX_CONFIG_BYTES), f"config {image_id}")
        chain = chain_ids(config.diff_ids)
        if len(chain) != len(manifest.layers):
            raise CorruptStateError(f"{what}: its configuration states another number of layers")
        for chain_id in chain:
            if layers.get(chain_id) is None:
                raise CorruptStateError(f"{what}: its layer {chain_id} is missing")
    except (CorruptStateError, BadArchiveError) as error:
        return Lost(str(error), image_id, tuple(chain), packed)
    return Described(
        image_id=image_id,
        config=config,
        chain=tuple(chain),
        packed=packed,
        documents_bytes=len(data) + manifest.config.size,
        annotations=kept_annotations(manifest.annotations),
    )


class Catalog:
    """Images by ID and by name."""

    def __init__(
        self,
        index: ImageIndex,
        described: Mapping[str, Described],
        layers: LayerStore,
        pins: Pins,
    ) -> None:
        self._by_id: dict[str, Image] = {}
        self._by_name = {
            name: described[digest].image_id
            for name, digest in index.names.items()
            if digest in described
        }
        manifests: dict[str, list[str]] = {}
        for digest in filter(described.__contains__, index.manifests):
            manifests.setdefault(described[digest].image_id, []).append(digest)
        names: dict[str, list[str]] = {}
        for name, image_id in self._by_name.items():
            names.setdefault(image_id, []).append(name)
        for image_id, digests in manifests.items():
            facts = described[digests[0]]
            own = names.get(image_id, [])
            found = [layers.get(chain_id) for chain_id in facts.chain]
            self._by_id[image_id] = Image(
                id=image_id,
                repo_tags=tuple(name for name in own if "@" not in name),
                repo_digests=tuple(name for name in own if "@" in name),
                size=facts.documents_bytes
                + sum(layer.disk_bytes for layer in found if layer is not None),
                config=facts.config,
                pinned=pins.match(own),
                chain=facts.chain,
                manifest_digests=tuple(digests),
                annotations=facts.annotations,
            )

    def images(self) -> list[Image]:
        """Every image, in the order of the index."""
        return list(self._by_id.values())

    def find(self, text: str) -> Image | None:
        """The image with that reference, that ID, or the only one whose ID begins so; None if there is none.

        Raises BadImageReferenceError for text that is neither.
        """
        exact = self._by_id.get(text) or self._by_id.get(f"sha256:{text}")
        if exact is not None:
            return exact
        prefix = text.removeprefix("sha256:")
        could_be_id = bool(prefix) and _HEX.issuperset(prefix)
        try:
            reference = parse_reference(text)
        except BadImageReferenceError:
            if could_be_id:
                return self._find_prefix(prefix)
            raise
        # If there is a tag and a digest, the digest counts: it is exact, while the tag may have moved.
        image_id = self._by_name.get(reference.digested or reference.tagged or "")
        if image_id is not None:
            return self._by_id[image_id]
        return self._find_prefix(prefix) if could_be_id else None

    def _find_prefix(self, prefix: str) -> Image | None:
        whole = f"sha256:{prefix}"
        found = [image for image_id, image in self._by_id.items() if image_id.startswith(whole)]
        return found[0] if len(found) == 1 else None
