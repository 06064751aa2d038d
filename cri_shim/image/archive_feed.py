"""The feed of a spooled archive: its layers, its documents, and the names of its images.

Rules: a confined child wrote the files, and the archive may have taken that child over. So only regular files are
opened, and documents are hashed again. The archive's author chose its names: those of built-in images are refused.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import MAX_CONFIG_BYTES, digest_of
from cri_shim.image.model import ImportProgress
from cri_shim.image.reference import RESERVED_DOMAIN
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.image.blobs import BlobStore
    from cri_shim.image.planned import PlannedDocument, PlannedImage, PlannedLayer
    from cri_shim.image.reference import Reference
    from cri_shim.image.unpack.client import Unpacker
    from cri_shim.image.unpack.protocol import LayerReport

    Tell = Callable[[ImportProgress], None]

_NAMES_SHOWN = 3


class ArchiveFeed:
    """The feed of a spooled archive (`ingest.Feed`)."""

    def __init__(
        self, unpacker: Unpacker, spool_fd: int, planned: Sequence[PlannedImage], tell: Tell
    ) -> None:
        """`tell` is called now, when the archive is complete, and after each layer."""
        self._unpacker = unpacker
        self._spool_fd = spool_fd
        self._tell = tell
        self._total = sum(len(image.layers) for image in planned)
        self._done = 0
        names = [str(name) for image in planned for name in image.names[:1]]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        self._what = (", ".join(names[:_NAMES_SHOWN]) or "image archive") + more
        tell(ImportProgress("received", self._what, 0, self._total))

    @property
    def source(self) -> str:
        """This archive alone: only the child that read the archive vouches that a file has its digest."""
        return f"archive {self._spool_fd}"

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        """Unpack from the spooled file."""
        fd = open_spooled(self._spool_fd, layer.file)
        try:
            return await self._unpacker.unpack_layer(
                fd, directory_fd, what=f"layer {layer.diff_id}", owner=self._what
            )
        finally:
            os.close(fd)

    def placed(self, layer: PlannedLayer) -> None:
        """Report another layer."""
        self._done += 1
        self._tell(ImportProgress("layer", self._what, self._done, self._total))

    async def complete(self, layers: Sequence[PlannedLayer]) -> None:
        """Do nothing: the archive has every blob."""

    def commit_layer(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """Move the spooled file into the blob store."""
        blobs.adopt(self._spool_fd, layer.file, layer.blob.digest)

    def commit_document(self, document: PlannedDocument, blobs: BlobStore) -> None:
        """Copy the spooled document into the blob store."""
        put_document(document, self._spool_fd, blobs)


def open_spooled(directory_fd: int, file: str) -> int:
    """Open a spooled file for reading. Raises BadArchiveError if the child left anything but a regular file there."""
    if not file.isalnum():
        raise BadArchiveError(f"spooled file {quoted(file)}: the name is invalid")
    # A child could write to this directory: follow no link, and don't block on a FIFO.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(file, flags, dir_fd=directory_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadArchiveError(f"spooled file {file}: not a regular file")
    return fd


def put_document(document: PlannedDocument, directory_fd: int, blobs: BlobStore) -> None:
    """Copy a spooled manifest or configuration into the store. Blocking; raises BadArchiveError, OSError."""
    if document.digest in blobs:
        return
    fd = open_spooled(directory_fd, document.file)
    try:
        # One byte more than allowed, so that a longer file fails the digest check.
        data = os.pread(fd, MAX_CONFIG_BYTES + 1, 0)
    finally:
        os.close(fd)
    if digest_of(data) != document.digest:
        raise BadArchiveError(
            f"blob {document.digest}: its bytes have the digest {digest_of(data)}"
        )
    blobs.put(data)


def with_names(planned: Sequence[PlannedImage], reference: Reference | None) -> list[PlannedImage]:
    """The images with the names they get: the caller's `reference`, else the archive's.

    The caller may use any name. An archive may not: it could replace the pause image of every pod.
    """
    if reference is not None:
        if len(planned) != 1:
            raise BadArchiveError(
                f"name {reference}: a name applies to an archive of one image; this one has {len(planned)}"
            )
        return [msgspec.structs.replace(planned[0], names=(reference,))]
    for image in planned:
        for name in image.names:
            if name.domain == RESERVED_DOMAIN:
                raise BadArchiveError(
                    f"{name}: names below {RESERVED_DOMAIN} are reserved for built-in images"
                )
            if name.tag is None:
                raise BadArchiveError(
                    f"{name}: an archive can name an image by tag only, not by digest"
                )
    return list(planned)
