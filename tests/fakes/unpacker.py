"""An unpacker without confinement, so without root: it inflates, hashes and counts, and writes one file per layer."""

from __future__ import annotations

import fcntl
import hashlib
import os
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import zstandard

from cri_shim.errors import BadArchiveError
from cri_shim.image.unpack.document_jobs import read_config, read_manifest
from cri_shim.image.unpack.growing_file import Growing
from cri_shim.image.unpack.protocol import LayerReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.image.manifest import ImageConfig, Platform
    from cri_shim.image.unpack.protocol import ManifestReport

MARK = "unpacked"


class FakeUnpacker:
    """The part of `Unpacker` that pulls use."""

    def __init__(self) -> None:
        self.stream_free = True
        self.warm = False
        self.streamed: list[str] = []
        self.from_files: list[str] = []
        self.accesses: set[int] = set()
        """How the files that it was given were opened: `os.O_RDONLY`, …"""
        self.at_once = 0

    def warm_up(self) -> None:
        self.warm = True

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[bool]:
        yield self.stream_free

    async def unpack_layer(
        self,
        source: AsyncIterator[bytes] | Growing | int,
        directory_fd: int,
        *,
        what: str,
        owner: str = "",
    ) -> LayerReport:
        self.at_once += 1
        try:
            (self.from_files if isinstance(source, int) else self.streamed).append(what)
            data = b""
            if isinstance(source, (Growing, int)):
                fd = source if isinstance(source, int) else source.fd
                self.accesses.add(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
            if isinstance(source, int):
                while piece := os.read(source, 1 << 20):
                    data += piece
            elif isinstance(source, Growing):
                async for size in source.sizes:
                    data += os.pread(source.fd, size - len(data), len(data))
            else:
                async for piece in source:
                    data += piece
            return self._report(data, directory_fd, what)
        finally:
            self.at_once -= 1

    async def read_manifest(
        self,
        document_fd: int,
        directory_fd: int,
        platform: Platform,
        *,
        what: str,
        content_type: str,
    ) -> ManifestReport:
        assert os.listdir(directory_fd) == []
        return read_manifest(_whole(document_fd), platform, what, content_type)

    async def read_config(
        self, document_fd: int, directory_fd: int, platform: Platform, *, what: str
    ) -> ImageConfig:
        assert os.listdir(directory_fd) == []
        return read_config(_whole(document_fd), what).config

    async def close(self) -> None:
        """Nothing to close."""

    def _report(self, data: bytes, directory_fd: int, what: str) -> LayerReport:
        if data[:2] == b"\x1f\x8b":
            try:
                data = zlib.decompress(data, wbits=31)
            except zlib.error as error:
                raise BadArchiveError(f"{what}: the gzip stream is damaged: {error}") from error
        elif data[:4] == b"\x28\xb5\x2f\xfd":
            data = zstandard.ZstdDecompressor().decompress(data)
        diff_id = "sha256:" + hashlib.sha256(data).hexdigest()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        fd = os.open(MARK, flags, 0o644, dir_fd=directory_fd)
        os.write(fd, diff_id.encode())
        os.utime(fd, ns=(0, 0))  # as a layer has it: whenever it is unpacked, it is the same
        os.close(fd)
        return LayerReport(
            diff_id=diff_id,
            inflated_bytes=len(data),
            disk_bytes=4096,
            inodes=1,
            opaque_dirs=[],
            implied_dirs=[],
            whiteout_dirs=[],
            dropped_xattrs=0,
        )


def _whole(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()
