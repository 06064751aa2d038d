"""Blobs by digest: manifests, configurations and packed layers, as an OCI image layout keeps them.

Rules: a blob's name is its digest, checked before it is put here; it never changes. Nothing counts before the index
refers to it, so a blob without a reference is a leftover and swept. Sizes are kept in memory: usage costs nothing.
Threads store and sweep blobs while the loop counts them, so the sizes change under a lock and are walked as a copy.

Spec: OCI image-layout 1.1, "Blobs".
"""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CorruptStateError
from cri_shim.host.files import read_bounded, write_atomic
from cri_shim.image.manifest import digest_of
from cri_shim.image.reference import is_digest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

log = structlog.get_logger()
_BLOCK = 4096


class BlobStore:
    """`blobs/sha256` of an OCI layout."""

    def __init__(self, layout_dir: Path) -> None:
        self._dir = layout_dir / "blobs" / "sha256"
        self._sizes: dict[str, int] = {}
        self._changing_sizes = threading.Lock()
        self.used_bytes = 0
        """What all blobs take on disk."""

    def open(self) -> None:
        """Make the directory if it isn't there and note what is in it; what is no blob is removed."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(self._dir) as found:
            for item in found:
                digest = f"sha256:{item.name}"
                if is_digest(digest) and item.is_file(follow_symlinks=False):
                    self._add(digest, item.stat(follow_symlinks=False).st_size)
                elif item.is_file(follow_symlinks=False):
                    os.unlink(item.path)  # a write that was cut short

    def __contains__(self, digest: str) -> bool:
        return digest in self._sizes

    @property
    def inodes(self) -> int:
        """How many blobs there are."""
        return len(self._sizes)

    def size(self, digest: str) -> int:
        """Bytes of one blob; 0 when it isn't here."""
        return self._sizes.get(digest, 0)

    def disk_bytes(self, digest: str) -> int:
        """What one blob takes on disk; 0 when it isn't here."""
        return _on_disk(self.size(digest))

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return self._dir / digest.removeprefix("sha256:")

    def read(self, digest: str, max_bytes: int) -> bytes:
        """A small blob, checked against its digest.

        Raises CorruptStateError naming the file; the blob counts as missing from then on, so that it comes anew.
        """
        try:
            return self.peek(digest, max_bytes)
        except CorruptStateError:
            self.forget(digest)
            raise

    def peek(self, digest: str, max_bytes: int) -> bytes:
        """The same, but nothing becomes of a damaged one; may be called in a thread. Raises CorruptStateError."""
        path = self.path(digest)
        try:
            data = read_bounded(path, max_bytes)
        except OSError as error:
            raise CorruptStateError(f"blob {path}: {error}") from error
        if digest_of(data) != digest:
            raise CorruptStateError(f"blob {path}: its bytes do not have the digest of its name")
        return data

    def put(self, data: bytes) -> str:
        """Store `data`; its digest. Not durable yet. Raises OSError."""
        digest = digest_of(data)
        if digest not in self._sizes:
            write_atomic(self.path(digest), data)
            self._add(digest, len(data))
        return digest

    def adopt(self, directory_fd: int, name: str, digest: str) -> None:
        """Move the file `name` of a directory here, as the blob `digest`, which was checked already.

        Raises OSError; EINVAL when it is no regular file of ours.
        """
        if digest in self._sizes:
            return
        found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(22, "not a regular file", name)
        os.rename(name, self.path(digest), src_dir_fd=directory_fd)
        self._add(digest, found.st_size)

    def lend(self, digest: str, directory_fd: int, name: str) -> bool:
        """Give a blob a second name in a directory, where it stays whatever becomes of it here; False if it isn't here.

        Raises OSError.
        """
        if digest not in self._sizes:
            return False
        try:
            os.link(self.path(digest), name, dst_dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False  # swept at this moment
        return True

    def forget(self, digest: str) -> None:
        """Remove one blob: it is damaged, and a better one is on its way. What can't be removed is overwritten then."""
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            log.warning("a damaged blob can't be removed", blob=digest, error=str(error))
        self._drop(digest)

    def unneeded(self, kept: Collection[str]) -> list[str]:
        """Every blob that is not in `kept`."""
        with self._changing_sizes:
            here = list(self._sizes)
        return [digest for digest in here if digest not in kept]

    def sweep(self, kept: Collection[str]) -> int:
        """Remove every blob that is not in `kept`; how many went."""
        gone = 0
        for digest in self.unneeded(kept):
            try:
                self.path(digest).unlink(missing_ok=True)
            except OSError as error:
                log.warning("a blob can't be removed", blob=digest, error=str(error))
                continue
            self._drop(digest)
            gone += 1
        return gone

    def _add(self, digest: str, size: int) -> None:
        with self._changing_sizes:
            self.used_bytes += _on_disk(size) - _on_disk(self._sizes.get(digest, 0))
            self._sizes[digest] = size

    def _drop(self, digest: str) -> None:
        with self._changing_sizes:
            self.used_bytes -= _on_disk(self._sizes.pop(digest, 0))


def _on_disk(size: int) -> int:
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK
