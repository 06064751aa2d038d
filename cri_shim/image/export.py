"""Export images as an archive: an OCI layout that also has the list that `docker load` reads.

Rules: the archive has the documents and layers byte for byte as they came, so the images keep their IDs and digests. It
is streamed and never stored. What it needs can't be removed while it is sent. Each blob is checked against its digest
on the way out; a damaged blob ends the archive with an error.

Specs: OCI image-layout 1.1. Names stand where containerd and podman look for them.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cri_shim.background import uninterrupted
from cri_shim.errors import CorruptStateError, WrongStateError
from cri_shim.image.archive import CONTAINERD_NAME
from cri_shim.image.manifest import OCI_INDEX, REF_NAME, Descriptor, Index

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from cri_shim.image.model import Image
    from cri_shim.image.store_state import StoreState

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_PIECE_BYTES = 1 << 19
_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE


@dataclass(frozen=True, slots=True)
class Export:
    """An archive that is ready to be sent. It is valid while the context that gave it is open."""

    documents: Mapping[str, bytes]
    """Name in the archive -> the generated document."""
    blobs: Mapping[str, int]
    """Digest -> size."""
    directory_fd: int
    """A directory with the blobs, named by their hexadecimal digits."""

    @property
    def total_bytes(self) -> int:
        """The length of the archive."""
        sizes = [*map(len, self.documents.values()), *self.blobs.values()]
        sizes.append(_BLOCK)  # with its header it stands for the two empty blocks at the end
        blocks = sum(_BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK for size in sizes)
        return (blocks + _RECORD - 1) // _RECORD * _RECORD

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The archive in pieces. Raises CorruptStateError after a blob with a wrong digest, OSError."""
        sent = 0
        for name, data in self.documents.items():
            member = _header(name, len(data)) + data + _padding(len(data))
            sent += len(member)
            yield member
        for digest, size in self.blobs.items():
            header = _header("blobs/" + digest.replace(":", "/"), size)
            sent += len(header) + size + len(_padding(size))
            yield header
            async for piece in self._blob(digest, size):
                yield piece
            if padding := _padding(size):
                yield padding
        # The end of a tar: two empty blocks, padded to a whole record.
        yield bytes(self.total_bytes - sent)

    async def _blob(self, digest: str, size: int) -> AsyncIterator[bytes]:
        name = digest.removeprefix("sha256:")
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory_fd)
        try:
            hashed = hashlib.sha256()
            left = size
            while left and (piece := await uninterrupted(_read, fd, left, hashed)):
                left -= len(piece)
                yield piece
        finally:
            os.close(fd)
        if left or f"sha256:{hashed.hexdigest()}" != digest:
            raise CorruptStateError(
                f"blob {digest} is damaged on this node's disk, the export stopped; run "
                "`cri-shim image check --repair`"
            )


def prepare_export(state: StoreState, images: Sequence[Image], spool_fd: int) -> Export:
    """Link the images' blobs into the directory `spool_fd`, out of reach of removals. Blocking.

    Raises WrongStateError when a packed layer is not kept, OSError.
    """
    entries: list[Descriptor] = []
    docker: list[dict[str, object]] = []
    blobs: dict[str, int] = {}
    for image in images:
        digest = _complete_manifest(state, image)
        facts = state.described[digest]
        media_type, size = state.index.manifests[digest]
        entries += [
            Descriptor(
                media_type=media_type,
                digest=digest,
                size=size,
                annotations={CONTAINERD_NAME: name, REF_NAME: name} if name else {},
            )
            for name in image.repo_tags or ("",)
        ]
        docker.append(
            {
                "Config": _blob_name(facts.image_id),
                "RepoTags": list(image.repo_tags),
                "Layers": [_blob_name(blob) for blob in facts.packed],
            }
        )
        for blob in (digest, facts.image_id, *facts.packed):
            blobs[blob] = state.blobs.size(blob)
    for blob in blobs:
        if not state.blobs.lend(blob, spool_fd, blob.removeprefix("sha256:")):
            raise WrongStateError(f"blob {blob} was removed while the export began; try again")
    index = Index(schema_version=2, media_type=OCI_INDEX, manifests=entries)
    documents = {
        "oci-layout": _LAYOUT,
        "index.json": msgspec.json.encode(index),
        "manifest.json": msgspec.json.encode(docker),
    }
    return Export(documents, blobs, spool_fd)


def _complete_manifest(state: StoreState, image: Image) -> str:
    """The digest of a manifest of the image whose blobs are all here."""
    missing: list[str] = []
    for digest in image.manifest_digests:
        facts = state.described[digest]
        needed = (digest, facts.image_id, *facts.packed)
        missing = [blob for blob in needed if blob not in state.blobs]
        if not missing:
            return digest
    raise WrongStateError(
        f"image {image.name} can't be exported: {len(missing)} of its blobs are not on this node, the first is "
        f"{missing[0]}; pull or import the image again with images.discard_blobs off"
    )


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size
    # The GNU format, since a blob may exceed ustar's 8 GiB.
    return header.tobuf(format=tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _read(fd: int, left: int, hashed: hashlib._Hash) -> bytes:
    piece = os.read(fd, min(left, _PIECE_BYTES))
    hashed.update(piece)
    return piece
