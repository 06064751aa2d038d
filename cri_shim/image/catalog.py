"""The images that the index names, as memory has them: looked up without waiting.

Rules: built from an index and the documents that its manifests lead to, and built anew with every change; it is never
changed in place, so that whoever holds one sees a consistent list. An image is its configuration's digest: manifests
that differ only in how layers are packed are one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import BadImageReferenceError, CorruptStateError
from cri_shim.image.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    ImageConfig,
    Manifest,
    chain_ids,
    parse_config,
    parse_document,
)
from cri_shim.image.model import Image
from cri_shim.image.reference import RESERVED_DOMAIN, parse_reference

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.index import ImageIndex
    from cri_shim.image.layers import LayerStore

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Described:
    """What a manifest in the index leads to."""

    image_id: str
    config: ImageConfig
    chain: tuple[str, ...]
    blobs: frozenset[str]
    """Digests of everything it refers to, itself included."""


def describe(
    manifest_digest: str, manifest: Manifest, config: ImageConfig, chain: Collection[str]
) -> Described:
    """The documents of one image, put together."""
    referred = {
        manifest_digest,
        manifest.config.digest,
        *(layer.digest for layer in manifest.layers),
    }
    return Described(manifest.config.digest, config, tuple(chain), frozenset(referred))


def read_described(manifest_digest: str, blobs: BlobStore, layers: LayerStore) -> Described:
    """What is on disk of the image of `manifest_digest`. Raises CorruptStateError, BadArchiveError."""
    what = f"manifest {manifest_digest}"
    manifest = parse_document(blobs.read(manifest_digest, MAX_MANIFEST_BYTES), what)
    if not isinstance(manifest, Manifest):
        raise CorruptStateError(f"{what}: an index, where an image's manifest belongs")
    config_digest = manifest.config.digest
    config = parse_config(blobs.read(config_digest, MAX_CONFIG_BYTES), f"config {config_digest}")
    chain = chain_ids(config.diff_ids)
    for chain_id in chain:
        if layers.get(chain_id) is None:
            raise CorruptStateError(f"{what}: its layer {chain_id} is missing")
    return describe(manifest_digest, manifest, config, chain)


class Catalog:
    """Images by ID and by name."""

    def __init__(
        self,
        index: ImageIndex,
        described: Mapping[str, Described],
        layers: LayerStore,
        pinned: frozenset[str],
    ) -> None:
        self._by_id: dict[str, Image] = {}
        self._by_name = {name: described[digest].image_id for name, digest in index.names.items()}
        manifests: dict[str, list[str]] = {}
        for digest in index.manifests:
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
                size=sum(layer.disk_bytes for layer in found if layer is not None),
                config=facts.config,
                pinned=_is_pinned(own, pinned),
                chain=facts.chain,
                manifest_digests=tuple(digests),
            )

    def images(self) -> list[Image]:
        """Every image, in the order of the index."""
        return list(self._by_id.values())

    def find(self, text: str) -> Image | None:
        """The image of that reference, ID, or beginning of an ID that only one has.

        Raises BadImageReferenceError for what can be none of these.
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
        # With both a tag and a digest the digest decides: it says exactly what is meant.
        image_id = self._by_name.get(reference.digested or reference.tagged or "")
        if image_id is not None:
            return self._by_id[image_id]
        return self._find_prefix(prefix) if could_be_id else None

    def _find_prefix(self, prefix: str) -> Image | None:
        whole = f"sha256:{prefix}"
        found = [image for image_id, image in self._by_id.items() if image_id.startswith(whole)]
        return found[0] if len(found) == 1 else None


def _is_pinned(names: Collection[str], pinned: frozenset[str]) -> bool:
    """Configured so, or built in: kubelet would collect the pause image whenever no pod runs."""
    return any(name in pinned or name.startswith(f"{RESERVED_DOMAIN}/") for name in names)
