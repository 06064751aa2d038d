"""Documents of strangers, read by a process that may die: manifests and configurations of one image on its way in.

Rules: no document is parsed on the loop or in its process, since one within its bounds can take a hundred milliseconds
and many times its size of memory. A document lies in a file meanwhile, not in memory. Each gets a confined child of its
own, in a directory apart from the files of the pull; what that answers is bounded, and is about this image only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from cri_shim.background import uninterrupted
from cri_shim.image.manifest import digest_of
from cri_shim.image.planned import PlannedDocument

if TYPE_CHECKING:
    from cri_shim.image.manifest import ImageConfig, Platform
    from cri_shim.image.unpack.protocol import ManifestReport


class DocumentJobs(Protocol):
    """The part of `unpack.Unpacker` that reads documents; it has their errors."""

    async def read_manifest(
        self,
        document_fd: int,
        directory_fd: int,
        platform: Platform,
        *,
        what: str,
        content_type: str,
    ) -> ManifestReport:
        """What a manifest or an index says."""

    async def read_config(
        self, document_fd: int, directory_fd: int, platform: Platform, *, what: str
    ) -> ImageConfig:
        """What an image configuration says."""


class DocumentReader:
    """Keeps and reads the documents of one image."""

    def __init__(
        self, jobs: DocumentJobs, platform: Platform, spool_fd: int, apart_fd: int
    ) -> None:
        """`spool_fd` is the directory that keeps documents, `apart_fd` an empty one that children are shut up in."""
        self._jobs = jobs
        self._platform = platform
        self._spool_fd = spool_fd
        self._apart_fd = apart_fd

    @property
    def platform(self) -> Platform:
        """The machine for which images are chosen."""
        return self._platform

    async def keep(self, data: bytes) -> PlannedDocument:
        """Put a document in a file. Raises OSError."""
        return await uninterrupted(_keep, data, self._spool_fd)

    async def manifest(
        self, document: PlannedDocument, what: str, content_type: str = ""
    ) -> ManifestReport:
        """What a manifest or an index says; `what` names it in errors. It is refused as another kind than it came as.

        Raises BadArchiveError, ResourceExhaustedError, UnavailableError, and OSError where the file is gone.
        """
        fd = self._open(document)
        try:
            return await self._jobs.read_manifest(
                fd, self._apart_fd, self._platform, what=what, content_type=content_type
            )
        finally:
            os.close(fd)

    async def config(self, document: PlannedDocument, what: str) -> ImageConfig:
        """What an image configuration says. Raises as `manifest`."""
        fd = self._open(document)
        try:
            return await self._jobs.read_config(fd, self._apart_fd, self._platform, what=what)
        finally:
            os.close(fd)

    def _open(self, document: PlannedDocument) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(document.file, flags, dir_fd=self._spool_fd)


def _keep(data: bytes, spool_fd: int) -> PlannedDocument:
    digest = digest_of(data)
    # A layer's file has the digest alone as its name: a manifest may name one blob as both.
    file = "d" + digest.removeprefix("sha256:")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(file, flags, 0o600, dir_fd=spool_fd), "wb") as stream:
        stream.write(data)
    return PlannedDocument(digest, len(data), file)
