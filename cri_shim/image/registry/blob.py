"""The bytes of one blob from a registry's servers: from where the last one left off, to the end.

Rules:
- A blob that broke off goes on where it broke (Range). A server that knows no ranges, or gets them wrong, is asked once
  for all of it, and what is here already is skipped: it has the blob all the same.
- Never more bytes than the manifest promises; whether they are the right ones, the sink knows.
- A connection without a byte is given up, so that another try fits in.

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
"""Until the end of an answer that has brought all of a blob: then its connection can be used again, and not else."""
_RANGED = frozenset({200, 206, 400, 416, 501})
"""Answers to a request for a part of a blob: with it, with all of it, or that there are no parts."""


class Sink(Protocol):
    """Takes the bytes of a blob."""

    @property
    def received(self) -> int:
        """Bytes taken so far; a broken transfer goes on from there."""

    async def write(self, chunk: bytes) -> None:
        """Take more."""


class BlobTransfer:
    """One blob on its way into one sink, whoever sends it."""

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
        """Each byte sets `watchdog` to `stall_s` from then on; a connection may be silent for `patience_s`."""
        self._http = http
        self._blob = blob
        self._sink = sink
        self._watchdog = watchdog
        self._stall_s = stall_s
        self._patience_s = patience_s

    async def go_on(self, endpoint: Endpoint, path: str, *, answers_within_s: float | None) -> None:
        """From where the sink is to the end, or as far as the connection holds. Raises ServerFailure, and as the
        sink."""
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
                    "a server does not send the rest of a blob and is asked for all of it",
                    server=endpoint.origin,
                    blob=self._blob.digest,
                    status=response.status,
                )
        async with self._http.request(
            endpoint, "GET", path, {}, patience_s=answers_within_s
        ) as response:
            await self._take(endpoint, response, start)

    async def _take(self, endpoint: Endpoint, response: aiohttp.ClientResponse, skip: int) -> None:
        """All of an answer but its first `skip` bytes, as far as the connection holds."""
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
                    f"blob {blob.digest}: more than the {blob.size} bytes that the manifest promises",
                )
            if chunk:
                await sink.write(chunk)

    async def _next_piece(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> bytes:
        """Empty at the end, however an answer ends that has brought all of the blob. Raises ServerFailure."""
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
    """How many bytes to skip of the answer to a request for those from `start` on; None: it is of no use."""
    if response.status == 200:
        return start  # all of it, from the beginning
    sent = response.headers.get("Content-Range", "")
    return 0 if response.status == 206 and sent.startswith(f"bytes {start}-") else None
