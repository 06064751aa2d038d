"""What the daemon keeps in memory of each image, as a record on disk: a start reads that, and no document of strangers.

Rules:
- A record is made from documents that a confined child has read, and is written before the index names the image. It is
  bounded as what it keeps is, and it carries its own digest: one that is torn or altered counts for nothing.
- Ordinary documents are hashed at a start, so that damage is found then. A document that is larger than `_HASHED_BYTES`
  is only looked for: how long a start takes must not be for makers of images to decide. Its damage is found by a check
  and by whoever reads it.
- Without a record, documents are parsed as they were before there were records, and the record is made then.
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
"""Far more than `manifest.MAX_WORDS_BYTES` and 500 layers take."""
_HASHED_BYTES = 64 << 10
_DIGEST_BYTES = len(digest_of(b""))


class ImageRecords:
    """One record for each manifest of the index. Blocking."""

    def __init__(self, records_dir: Path) -> None:
        self._dir = records_dir

    def open(self, kept: Collection[str]) -> None:
        """Make the directory; records of other manifests than these go. Raises OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._dir.iterdir():
            if f"sha256:{path.name}" not in kept:
                path.unlink()

    def read(self, manifest: str, blobs: BlobStore, layers: LayerStore) -> Described | None:
        """What is known of the image of that manifest; None where that has to be found out from its documents."""
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
        """Not durable yet. Raises OSError."""
        body = msgspec.json.encode(described)
        write_atomic(self._file(manifest), digest_of(body).encode() + body)

    def remove(self, manifests: Collection[str]) -> None:
        """What can't be removed goes at the next start."""
        for manifest in manifests:
            try:
                self._file(manifest).unlink(missing_ok=True)
            except OSError as error:
                log.warning("an image's record can't be removed", error=str(error))

    def _file(self, manifest: str) -> Path:
        return self._dir / manifest.removeprefix("sha256:")
