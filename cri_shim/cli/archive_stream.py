"""Reads an image file as a stream of chunks: an archive as it is, an OCI layout directory as a tar archive.

Rules:
- Chunks are well below `limits.grpc_message`.
- Of a directory only regular files are sent and links are not followed, so that the stream has no file from outside.
"""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.errors import (
    BadArchiveError,
    CriShimError,
    NotFoundError,
    PermissionRefusedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES: Final = 1 << 19
MARKER: Final = "oci-layout"
"""The file that makes a directory an OCI layout (image-spec, image-layout.md)."""
_BLOCK: Final = tarfile.BLOCKSIZE


class ArchiveStream:
    """The stream for `path`; `size_bytes` is 0 if the size is unknown (a pipe)."""

    def __init__(self, path: Path, *, stdin: BinaryIO | None = None) -> None:
        """The path `-` is `stdin`.

        Raises: NotFoundError, PermissionRefusedError; BadArchiveError for a directory that is not an OCI layout.
        """
        self._path = path
        self._stdin = stdin if path == Path("-") else None
        self._files: list[tuple[Path, str, int]] = []
        self.size_bytes = 0
        if self._stdin is not None:
            return
        try:
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                self._files = _layout_files(path)
                self.size_bytes = sum(_padded(_BLOCK + size) for _, _, size in self._files)
                self.size_bytes += 2 * _BLOCK
            else:
                self.size_bytes = found.st_size if stat.S_ISREG(found.st_mode) else 0
                path.open("rb").close()  # fail here, and not in the middle of a call
        except FileNotFoundError:
            raise NotFoundError("file", str(path)) from None
        except PermissionError as error:
            raise PermissionRefusedError(f"cannot read {path}: {error.strerror}") from error

    def chunks(self) -> Iterator[bytes]:
        """Read the stream once. Raises OSError if a read fails, BadArchiveError for a file that changes meanwhile."""
        if self._stdin is not None:
            yield from _chunks_of(self._stdin)
        elif self._files:
            yield from self._as_tar()
        else:
            with self._path.open("rb") as file:
                yield from _chunks_of(file)

    def _as_tar(self) -> Iterator[bytes]:
        for path, name, size in self._files:
            info = tarfile.TarInfo(name)
            info.size = size
            yield info.tobuf(tarfile.USTAR_FORMAT)
            sent = 0
            with path.open("rb") as file:
                for chunk in _chunks_of(file):
                    sent += len(chunk)
                    if sent > size:
                        break
                    yield chunk
            if sent != size:
                raise BadArchiveError(f"{path} changed while it was sent: try again")
            yield bytes(_padded(size) - size)
        yield bytes(2 * _BLOCK)


def import_messages(archive: ArchiveStream, name: str) -> Iterator[admin.ImportImageRequest]:
    """The requests of ImportImage: the options, then the archive. Raises CriShimError if a read fails."""
    options = admin.ImportOptions(name=name, archive_bytes=archive.size_bytes)
    yield admin.ImportImageRequest(options=options)
    try:
        for chunk in archive.chunks():
            yield admin.ImportImageRequest(chunk=chunk)
    except OSError as error:
        raise CriShimError(f"cannot read the image file: {error}") from error


def _layout_files(directory: Path) -> list[tuple[Path, str, int]]:
    """The files of an OCI layout with name in the archive and size. Blobs come last."""
    if not (directory / MARKER).is_file():
        raise BadArchiveError(
            f"{directory} is not an OCI layout: it is a directory without the file {MARKER}"
        )
    found: list[tuple[Path, str, int]] = []
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((path, str(path.relative_to(directory)), status.st_size))
    return sorted(found, key=lambda file: (file[1].startswith("blobs/"), file[1]))


def _chunks_of(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
