"""The transfer of one blob from a registry's servers, each resuming where the last one stopped.

Rules:
- An interrupted blob resumes with a Range request. A server without ranges, or with wrong ones, is asked once for the
  whole blob, and the bytes that are here are skipped: it has the blob all the same.
- A transfer never takes more bytes than the manifest states. The sink checks the digest.
- A connection without a byte for a while is dropped, in time for another attempt.

Spec: distribution 1.1, "Pulling blobs"; RFC 9110, "Range Requests".
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import aiohttp
import structlog

from cri_shim.image.registry.errors import Fault, ServerFailure

if TYPE_CHECKING:
    from cri_shim.image.manifest import Descriptor
    from cri_shim.image.registry.hosts import Endpoint
    from cri_shim.image.registry.http import RegistryHttp

log = structlog.get_logger()

_TRAILER_S = 1.0
"""How long to wait for the end of a response whose blob is complete. Only a finished response frees its connection."""
_RANGED = frozenset({200, 206, 400, 416, 501})
"""Statuses of a Range request that are handled: the part, the whole, or a refusal of ranges."""


class Sink(Protocol):
    """The destination of a blob's bytes."""

    @property
    def received(self) -> int:
        """Bytes taken so far, where an interrupted transfer resumes."""

    async def write(self, chunk: bytes) -> None:
        """Take more bytes."""


class BlobTransfer:
    """One blob on its way into one sink, from any number of servers."""

    def __init__(
        self,
        http: RegistryHttp,
        blob: Descriptor,
        sink: Sink,
        watchdog: asyncio.Timeout,
        *,
        stall_s: float,
        patience_s: float | None,
    ) -> None:
        """Each chunk moves `watchdog` to `stall_s` from now. A connection may be silent for `patience_s`."""
        self._http = http
        self._blob = blob
        self._sink = sink
        self._watchdog = watchdog
        self._stall_s = stall_s
        self._patience_s = patience_s

    async def go_on(self, endpoint: Endpoint, path: str, *, answers_within_s: float | None) -> None:
        """Transfer from the sink's position to the end, or until the connection breaks.

        Raises ServerFailure, and what the sink raises.
        """
        start = self._sink.received
        if start == self._blob.size:
            return
        if start:
            headers = {"Range": f"bytes={start}-"}
            async with self._http.request(
                endpoint, "GET", path, headers, patience_s=answers_within_s, accepted=_RANGED
            ) as response:
                skip = _offset(response, start)
                if skip is not None:
                    await self._take(endpoint, response, skip)
                    return
                log.debug(
                    "a server can't resume a blob; asking it for the whole",
                    server=endpoint.origin,
                    blob=self._blob.digest,
                    status=response.status,
                )
        async with self._http.request(
            endpoint, "GET", path, {}, patience_s=answers_within_s
        ) as response:
            await self._take(endpoint, response, start)

    async def _take(self, endpoint: Endpoint, response: aiohttp.ClientResponse, skip: int) -> None:
        """Take a response's body without its first `skip` bytes, as far as the connection lasts."""
        loop = asyncio.get_running_loop()
        blob, sink = self._blob, self._sink
        while True:
            chunk = await self._next_piece(endpoint, response)
            if not chunk:
                return
            if self._stall_s:
                self._watchdog.reschedule(loop.time() + self._stall_s)
            if skip:
                chunk, skip = chunk[skip:], max(0, skip - len(chunk))
            if sink.received + len(chunk) > blob.size:
                raise ServerFailure(
                    endpoint.origin,
                    Fault.DAMAGED,
                    f"blob {blob.digest}: more than the {blob.size} bytes that the manifest states",
                )
            if chunk:
                await sink.write(chunk)

    async def _next_piece(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> bytes:
        """The next bytes; empty at the end. Once the blob is complete, any end will do. Raises ServerFailure."""
        blob, sink = self._blob, self._sink
        whole = sink.received == blob.size
        try:
            async with asyncio.timeout(_TRAILER_S if whole else self._patience_s):
                return await response.content.readany()
        except TimeoutError:
            if whole:
                return b""
            raise ServerFailure(
                endpoint.origin,
                Fault.PASSING,
                f"it sent nothing for {self._patience_s:g} s, at {sink.received} of {blob.size} bytes",
            ) from None
        except aiohttp.ClientError:
            if whole:
                return b""
            raise


def _offset(response: aiohttp.ClientResponse, start: int) -> int | None:
    """How many bytes to skip of the response to a Range request from `start`; None if the response is of no use."""
    if response.status == 200:
        return start  # the whole blob
    sent = response.headers.get("Content-Range", "")
    return 0 if response.status == 206 and sent.startswith(f"bytes {start}-") else None
