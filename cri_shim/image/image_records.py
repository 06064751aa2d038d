"""The daemon's record of each image on disk, so that a start need not parse the images' own documents.

Rules:
- A record is made from documents that a confined child has parsed, and written before the index names the image. It is
  bounded, and begins with its own digest: a torn or altered record is ignored.
- A start hashes documents of up to `_HASHED_BYTES`, which finds damage early. Larger ones it only looks for, so that
  authors of images can't decide how long a start takes. A check, or whoever reads such a document, finds its damage.
- Without a record, the documents are parsed in this process, and the record is written then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from cri_shim.errors import UNREADABLE_DOCUMENT, CorruptStateError
from cri_shim.host.files import read_bounded, write_atomic
from cri_shim.image.catalog import Described
from cri_shim.image.manifest import digest_of
from cri_shim.image.reference import is_digest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.layers import LayerStore

log = structlog.get_logger()
_MAX_RECORD_BYTES = 4 << 20
"""Far above what `manifest.MAX_WORDS_BYTES` and 500 layers take."""
_HASHED_BYTES = 64 << 10
_DIGEST_BYTES = len(digest_of(b""))


class ImageRecords:
    """One record per manifest of the index. Methods block."""

    def __init__(self, records_dir: Path) -> None:
        self._dir = records_dir

    def open(self, kept: Collection[str]) -> None:
        """Create the directory, and remove the records of other manifests than `kept`. Raises OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._dir.iterdir():
            if f"sha256:{path.name}" not in kept:
                path.unlink()

    def read(self, manifest: str, blobs: BlobStore, layers: LayerStore) -> Described | None:
        """The record of that manifest's image; None if it is missing, damaged, or no longer matches the disk."""
        try:
            data = read_bounded(self._file(manifest), _MAX_RECORD_BYTES)
            digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
            if digest_of(body).encode() != digest:
                return None
            found = msgspec.json.decode(body, type=Described)
            for document in (manifest, found.image_id):
                if not is_digest(document) or document not in blobs:
                    return None
                if blobs.size(document) <= _HASHED_BYTES:
                    blobs.peek(document, _HASHED_BYTES)
        except (OSError, CorruptStateError, *UNREADABLE_DOCUMENT):
            return None
        return found if all(layers.get(chain_id) for chain_id in found.chain) else None

    def write(self, manifest: str, described: Described) -> None:
        """Write a record, not durably: the caller syncs the file system. Raises OSError."""
        body = msgspec.json.encode(described)
        write_atomic(self._file(manifest), digest_of(body).encode() + body)

    def remove(self, manifests: Collection[str]) -> None:
        """Remove records. One that can't be removed is logged and goes at the next start."""
        for manifest in manifests:
            try:
                self._file(manifest).unlink(missing_ok=True)
            except OSError as error:
                log.warning("an image's record can't be removed", error=str(error))

    def _file(self, manifest: str) -> Path:
        return self._dir / manifest.removeprefix("sha256:")
