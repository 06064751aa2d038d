"""A blob on its way from a registry: a file that grows, its running digest, and one reader that follows it.

Rules:
- A thread hashes and writes the bytes in the large pieces in which they arrive; none stay in memory. The unpacker reads
  the file as it grows, and the download never waits for it. So a slow reader doesn't slow the server, and what the
  reader reads doesn't pass through this process again.
- A blob is valid once its size and digest are right. The reader may see bytes that turn out wrong, so its result must
  not count before the transfer has ended well.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING

from cri_shim import metrics
from cri_shim.background import uninterrupted
from cri_shim.errors import DamagedBlobError, host_step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cri_shim.image.manifest import Descriptor


class Transfer:
    """One download of one blob into an empty file. The caller closes the file after the last use."""

    def __init__(
        self, fd: int, blob: Descriptor, *, what: str, tell: Callable[[int], None]
    ) -> None:
        """`what` names the blob in errors. `tell` is called with the number of bytes received, after each piece."""
        self._fd = fd
        self._blob = blob
        self._what = what
        self._tell = tell
        self._hash = hashlib.sha256()
        self._received = 0
        self._over = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    @property
    def received(self) -> int:
        """Bytes in the file so far."""
        return self._received

    async def write(self, chunk: bytes) -> None:
        """Append bytes. Raises ResourceExhaustedError (disk full), CriShimError."""
        with host_step(f"{self._what}: storing its blob"):
            await uninterrupted(self._take, chunk)
        self._received += len(chunk)
        metrics.IMAGE_PULL_BYTES.inc(len(chunk))
        self._news.set()
        self._tell(self._received)

    def _take(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._fd, view) :]

    def finish(self, sender: str) -> None:
        """End the transfer after the last byte; `sender` sent it. The reader sees the end.

        Raises DamagedBlobError if the digest is wrong. The transfer is not ended then: call `fail`.
        """
        digest = f"sha256:{self._hash.hexdigest()}"
        if digest != self._blob.digest:
            raise DamagedBlobError(
                f"{self._what}: the bytes from {sender} have the digest {digest}; its copy is damaged, or a proxy "
                "changes the bytes"
            )
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """End the transfer with an error, which the reader gets. The reader sees a cancellation as the end."""
        self._end(error if isinstance(error, Exception) else None)

    def _end(self, error: Exception | None) -> None:
        self._over = True
        self._error = error
        self._news.set()

    async def follow(self) -> AsyncIterator[int]:
        """Yield the number of bytes in the file whenever it has grown, up to the end. For one reader at a time.

        Raises the error that ended the transfer.
        """
        told = 0
        while True:
            self._news.clear()
            if told < self._received:
                told = self._received
                yield told  # while the reader is busy, more bytes and the end may arrive
            elif self._error is not None:
                raise self._error
            elif self._over:
                return
            else:
                await self._news.wait()
