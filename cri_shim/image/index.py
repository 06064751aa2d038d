"""The list of images: an OCI layout's `index.json`, with one entry per name of an image.

Rules: the file is replaced as a whole, durably, as the last write of a change, when everything it refers to is on disk.
An entry's annotation `org.opencontainers.image.ref.name` is a normalised name, `repository:tag` or `repository@digest`.
An image without a name has one entry without that annotation.

Spec: OCI image-layout 1.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT, CorruptStateError
from cri_shim.host.files import read_bounded, write_atomic
from cri_shim.image.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
)
from cri_shim.image.reference import is_digest
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from pathlib import Path

_INDEX_FILE = "index.json"
_LAYOUT_FILE = "oci-layout"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_MAX_INDEX_BYTES = 64 << 20


@dataclass(slots=True)
class ImageIndex:
    """Names and manifests. To change it, change a copy and save that."""

    manifests: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Manifest digest -> media type and size."""
    names: dict[str, str] = field(default_factory=dict)
    """Normalised name -> manifest digest."""

    def copy(self) -> ImageIndex:
        """An independent copy."""
        return ImageIndex(dict(self.manifests), dict(self.names))

    def names_of(self, manifest_digest: str) -> list[str]:
        """Every name of a manifest, oldest first."""
        return [name for name, digest in self.names.items() if digest == manifest_digest]

    def forget(self, manifest_digest: str) -> None:
        """Remove a manifest and all its names."""
        self.manifests.pop(manifest_digest, None)
        for name in self.names_of(manifest_digest):
            del self.names[name]


def load_index(layout_dir: Path) -> ImageIndex:
    """Load the index of a layout; empty if there is none yet. Raises CorruptStateError."""
    path = layout_dir / _INDEX_FILE
    try:
        document = msgspec.json.decode(read_bounded(path, _MAX_INDEX_BYTES), type=Index)
    except FileNotFoundError:
        return ImageIndex()
    except (OSError, *UNREADABLE_DOCUMENT) as error:
        raise CorruptStateError(f"image index {path}: {error}") from error
    index = ImageIndex()
    for entry in document.manifests:
        if not is_digest(entry.digest):
            raise CorruptStateError(f"image index {path}: invalid digest {quoted(entry.digest)}")
        index.manifests[entry.digest] = (entry.media_type or OCI_MANIFEST, entry.size)
        if name := entry.annotations.get(REF_NAME):
            index.names[name] = entry.digest
    return index


def save_index(layout_dir: Path, index: ImageIndex) -> None:
    """Replace the index, durably. Blocking; raises OSError."""
    entries = []
    for digest, (media_type, size) in index.manifests.items():
        names = index.names_of(digest)
        entries += [
            Descriptor(
                media_type=media_type,
                digest=digest,
                size=size,
                annotations={REF_NAME: name} if name else {},
            )
            for name in names or [""]
        ]
    document = Index(schema_version=2, media_type=OCI_INDEX, manifests=entries)
    layout = layout_dir / _LAYOUT_FILE
    # First: without this file the directory is no OCI layout, and other tools ignore the index.
    if not layout.exists():
        write_atomic(layout, _LAYOUT)
    write_atomic(layout_dir / _INDEX_FILE, msgspec.json.encode(document), fsync=True)


def set_aside(layout_dir: Path, damaged_dir: Path) -> Path:
    """Move a damaged index to an unused name below `damaged_dir`; returns the new path."""
    damaged_dir.mkdir(mode=0o700, exist_ok=True)
    number = 0
    while (target := damaged_dir / f"{_INDEX_FILE}.{number}").exists():
        number += 1
    (layout_dir / _INDEX_FILE).rename(target)
    return target
