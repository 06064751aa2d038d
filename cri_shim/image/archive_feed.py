"""The images of a spooled archive on their way into the store: their layers, their documents, and their names.

Rules: the files were written by a confined child that may have been its archive's by then. They are opened as plain
files only, and documents are hashed once more. Names in an archive are its maker's wish: those of the built-in images
are refused.
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
    """The layers of a spooled archive (`ingest.Feed`)."""

    def __init__(
        self, unpacker: Unpacker, spool_fd: int, planned: Sequence[PlannedImage], tell: Tell
    ) -> None:
        """`tell` hears of the archive's arrival and of each layer."""
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
        """This archive alone: that a spooled file has its digest is the word of a child that read the archive."""
        return f"archive {self._spool_fd}"

    async def unpack(self, layer: PlannedLayer, directory_fd: int) -> LayerReport:
        """From the spooled file."""
        fd = open_spooled(self._spool_fd, layer.file)
        try:
            return await self._unpacker.unpack_layer(
                fd, directory_fd, what=f"layer {layer.diff_id}", owner=self._what
            )
        finally:
            os.close(fd)

    def placed(self, layer: PlannedLayer) -> None:
        """One more."""
        self._done += 1
        self._tell(ImportProgress("layer", self._what, self._done, self._total))

    async def complete(self, layers: Sequence[PlannedLayer]) -> None:
        """The archive has them all."""

    def commit_layer(self, layer: PlannedLayer, blobs: BlobStore) -> None:
        """The spooled file becomes the blob."""
        blobs.adopt(self._spool_fd, layer.file, layer.blob.digest)

    def commit_document(self, document: PlannedDocument, blobs: BlobStore) -> None:
        """The spooled file's bytes become the blob."""
        put_document(document, self._spool_fd, blobs)


def open_spooled(directory_fd: int, file: str) -> int:
    """A spooled file, for reading. Raises BadArchiveError if the child left anything but a plain file there."""
    if not file.isalnum():
        raise BadArchiveError(f"a spooled file with the name {quoted(file)}")
    # The name is followed in a directory that a child could write to, so nothing but a file is opened.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(file, flags, dir_fd=directory_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BadArchiveError(f"spooled file {file}: not a plain file")
    return fd


def put_document(document: PlannedDocument, directory_fd: int, blobs: BlobStore) -> None:
    """Make a manifest or configuration in a spooled file a blob. Blocking; raises BadArchiveError, OSError."""
    if document.digest in blobs:
        return
    fd = open_spooled(directory_fd, document.file)
    try:
        data = os.pread(fd, MAX_CONFIG_BYTES + 1, 0)
    finally:
        os.close(fd)
    if digest_of(data) != document.digest:
        raise BadArchiveError(f"blob {document.digest}: its bytes have {digest_of(data)}")
    blobs.put(data)


def with_names(planned: Sequence[PlannedImage], reference: Reference | None) -> list[PlannedImage]:
    """What the images shall be called: as the caller says, else as the archive says.

    A caller is trusted with any name; an archive is not: it could replace the pause image of every pod.
    """
    if reference is not None:
        if len(planned) != 1:
            raise BadArchiveError(
                f"the name {reference} is for one image, but the archive has {len(planned)}"
            )
        return [msgspec.structs.replace(planned[0], names=(reference,))]
    for image in planned:
        for name in image.names:
            if name.domain == RESERVED_DOMAIN:
                raise BadArchiveError(
                    f"{name}: names of {RESERVED_DOMAIN} are the built-in images'"
                )
            if name.tag is None:
                raise BadArchiveError(
                    f"{name}: an archive can't give an image a digest as its name"
                )
    return list(planned)
