"""A blob on its way from a registry: a file that grows, its digest, and a reader who follows it.

Rules:
- Bytes are hashed and written in a thread, in the large pieces in which they come; none are kept in memory. Whoever
  unpacks reads the file as it grows and is never waited for, so that a slow reader doesn't hold up a server. What it
  reads does not pass through this process again.
- A blob counts once its size and digest are right. A reader may have seen bytes that turn out wrong: what it made of
  them must not count before the transfer has ended well.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING

from cri_shim import metrics
from cri_shim.background import uninterrupted
from cri_shim.errors import DamagedBlobError
from cri_shim.image.ingest import storage_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cri_shim.image.manifest import Descriptor


class Transfer:
    """One download of one blob into an empty file, which the caller closes after the last use of this."""

    def __init__(
        self, fd: int, blob: Descriptor, *, what: str, tell: Callable[[int], None]
    ) -> None:
        """`what` names it in errors. `tell` hears how many bytes are here, each time some have come."""
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
        """Bytes in the file."""
        return self._received

    async def write(self, chunk: bytes) -> None:
        """The next bytes. Raises ResourceExhaustedError (disk full), CriShimError."""
        try:
            await uninterrupted(self._take, chunk)
        except OSError as error:
            raise storage_error(error, f"{self._what}: storing it") from error
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
        """Everything has come, the last of it from `sender`; the reader sees the end.

        Raises DamagedBlobError when it isn't what was wanted: then it is not finished, and has to `fail`.
        """
        digest = f"sha256:{self._hash.hexdigest()}"
        if digest != self._blob.digest:
            raise DamagedBlobError(
                f"{self._what}: what {sender} sent has the digest {digest}: what it keeps is damaged, or something on "
                "the way changes it"
            )
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """Nothing more will come; the reader meets this error, or a cancellation as the end."""
        self._end(error if isinstance(error, Exception) else None)

    def _end(self, error: Exception | None) -> None:
        self._over = True
        self._error = error
        self._news.set()

    async def follow(self) -> AsyncIterator[int]:
        """How many bytes are here, each time that some have come, to the end. Only one reader at a time.

        Raises the error that ended the transfer.
        """
        told = 0
        while True:
            self._news.clear()
            if told < self._received:
                told = self._received
                yield told  # more may come, and the end, while the reader is busy with it
            elif self._error is not None:
                raise self._error
            elif self._over:
                return
            else:
                await self._news.wait()
