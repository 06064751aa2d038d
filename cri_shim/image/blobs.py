"""Blobs by digest: manifests, configurations and packed layers, in the directory of an OCI image layout.

Rules: a blob's name is its digest, verified before it is stored; a blob never changes. A blob that the index doesn't
refer to is a leftover and swept. Sizes are kept in memory, so usage is a sum and not a walk. Threads store and sweep
blobs while the loop adds them up, so sizes change under a lock and are iterated as a copy.

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
        """Bytes on disk of all blobs."""

    def open(self) -> None:
        """Create the directory or note the blobs in it; files that are no blobs are removed."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(self._dir) as found:
            for item in found:
                digest = f"sha256:{item.name}"
                if is_digest(digest) and item.is_file(follow_symlinks=False):
                    self._add(digest, item.stat(follow_symlinks=False).st_size)
                elif item.is_file(follow_symlinks=False):
                    os.unlink(item.path)  # an interrupted write

    def __contains__(self, digest: str) -> bool:
        return digest in self._sizes

    @property
    def inodes(self) -> int:
        """The number of blobs, each one inode."""
        return len(self._sizes)

    def size(self, digest: str) -> int:
        """Size of one blob in bytes; 0 if it is not here."""
        return self._sizes.get(digest, 0)

    def disk_bytes(self, digest: str) -> int:
        """Bytes on disk of one blob; 0 if it is not here."""
        return _on_disk(self.size(digest))

    def path(self, digest: str) -> Path:
        """The blob's path, whether it is here or not."""
        return self._dir / digest.removeprefix("sha256:")

    def read(self, digest: str, max_bytes: int) -> bytes:
        """Read a small blob and check its digest.

        Raises CorruptStateError with the path. The damaged blob is removed, so that it is fetched again.
        """
        try:
            return self.peek(digest, max_bytes)
        except CorruptStateError:
            self.forget(digest)
            raise

    def peek(self, digest: str, max_bytes: int) -> bytes:
        """Like `read`, but leave a damaged blob alone. May be called in a thread. Raises CorruptStateError."""
        path = self.path(digest)
        try:
            data = read_bounded(path, max_bytes)
        except OSError as error:
            raise CorruptStateError(f"blob {path}: {error}") from error
        if digest_of(data) != digest:
            raise CorruptStateError(f"blob {path}: its bytes have the digest {digest_of(data)}")
        return data

    def put(self, data: bytes) -> str:
        """Store `data` and return its digest. Not durable yet. Raises OSError."""
        digest = digest_of(data)
        if digest not in self._sizes:
            write_atomic(self.path(digest), data)
            self._add(digest, len(data))
        return digest

    def adopt(self, directory_fd: int, name: str, digest: str) -> None:
        """Move the file `name` of a directory into the store, as the blob `digest`, which the caller has verified.

        Raises OSError; EINVAL if it is not a regular file.
        """
        if digest in self._sizes:
            return
        found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(22, "not a regular file", name)
        # Spool directories are on the blobs' file system, so nothing is copied.
        os.rename(name, self.path(digest), src_dir_fd=directory_fd)
        self._add(digest, found.st_size)

    def lend(self, digest: str, directory_fd: int, name: str) -> bool:
        """Hard-link a blob into a directory, where no removal reaches it; False if the blob is not here.

        Raises OSError.
        """
        if digest not in self._sizes:
            return False
        try:
            os.link(self.path(digest), name, dst_dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False  # a sweep in another thread was faster
        return True

    def forget(self, digest: str) -> None:
        """Remove a damaged blob, so that a better one can come. If that fails, the better one overwrites it."""
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
        """Remove every blob that is not in `kept`; returns how many were removed."""
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
