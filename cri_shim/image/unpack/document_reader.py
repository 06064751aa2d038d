"""Reads the documents of one image that is being ingested, manifests and configurations, in confined children.

Rules: the daemon's process never parses such a document, which can take a hundred milliseconds and many times its size
of memory although it is within its bounds. A document waits in a file, not in memory. Each gets a confined child of its
own, in a directory apart from the pull's files. A child's answer is bounded and affects this image only.
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
    """The part of `client.Unpacker` that parses documents; it raises the same errors."""

    async def read_manifest(
        self,
        document_fd: int,
        directory_fd: int,
        platform: Platform,
        *,
        what: str,
        content_type: str,
    ) -> ManifestReport:
        """Parse a manifest or an index."""

    async def read_config(
        self, document_fd: int, directory_fd: int, platform: Platform, *, what: str
    ) -> ImageConfig:
        """Parse an image configuration."""


class DocumentReader:
    """Stores and reads the documents of one image."""

    def __init__(
        self, jobs: DocumentJobs, platform: Platform, spool_fd: int, apart_fd: int
    ) -> None:
        """`spool_fd` is the directory that keeps the documents, `apart_fd` an empty one that confines the children."""
        self._jobs = jobs
        self._platform = platform
        self._spool_fd = spool_fd
        self._apart_fd = apart_fd

    @property
    def platform(self) -> Platform:
        """The platform that images are chosen for."""
        return self._platform

    async def keep(self, data: bytes) -> PlannedDocument:
        """Store a document in a file. Raises OSError."""
        return await uninterrupted(_keep, data, self._spool_fd)

    async def manifest(
        self, document: PlannedDocument, what: str, content_type: str = ""
    ) -> ManifestReport:
        """Read a manifest or an index; `what` names it in errors. It must be of the kind that `content_type` states.

        Raises BadArchiveError, ResourceExhaustedError, UnavailableError, and OSError if the file is gone.
        """
        fd = self._open(document)
        try:
            return await self._jobs.read_manifest(
                fd, self._apart_fd, self._platform, what=what, content_type=content_type
            )
        finally:
            os.close(fd)

    async def config(self, document: PlannedDocument, what: str) -> ImageConfig:
        """Read an image configuration. Raises as `manifest`."""
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
    # With a prefix: layer files are named by their digest alone, and a manifest may use one blob as both.
    file = "d" + digest.removeprefix("sha256:")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(file, flags, 0o600, dir_fd=spool_fd), "wb") as stream:
        stream.write(data)
    return PlannedDocument(digest, len(data), file)
