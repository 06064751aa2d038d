"""Bounds the memory of all requests under way, each counted from its arrival to its answer.

Rules:
- A request counts with its bytes on the wire. The decoded message, and for a moment its JSON document, take some five
  times as many.
- Ordinary and large requests have a pool each, so that large ones never keep an exec or a list out.
- A tenant (a pod's namespace) may use half of what the others leave of a pool, so that another tenant's request finds
  room. A tenant with nothing under way may have one request of any size that the pool has room for.
- A request without room is refused at once, undecoded: waiting requests would hold the very memory that is short.
  Kubelet retries.
- Each large request is decoded in a turn of the event loop of its own: eight in one turn stalled the loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import ResourceExhaustedError
from cri_shim.sandbox.store.model import tenant_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from cri_shim.sandbox.store.store import Container, Sandbox

LARGE_BYTES: Final = 64 << 10
"""A larger request counts as large: a container with more than a thousand environment variables."""
_FIELD_1: Final = b"\x0a"
_MAX_VARINT_BYTES: Final = 6
_MAX_ID_BYTES: Final = 64
_MAX_HEAD_BYTES: Final = 8192
"""How much of a new pod's configuration is read to find its namespace; the metadata come first in it."""
_MAX_NAMESPACE_CHARS: Final = 63
MAX_LARGE_BYTES: Final = 4 << 20
"""The pool of large requests. A single request may exceed it, if no other large one is under way."""
MAX_ORDINARY_BYTES: Final = 8 << 20
"""The pool of ordinary requests: room for hundreds of creations."""


class _Pool:
    """The bytes under way of one kind of request, in total and by tenant."""

    def __init__(self, most: int, kind: str) -> None:
        self._most = most
        self._kind = kind
        self._total = 0
        self._of: Counter[str] = Counter()

    @contextmanager
    def held(self, size: int, tenant: str) -> Iterator[None]:
        own = self._of[tenant]
        others = self._total - own
        if self._total and self._total + size > self._most:
            self._refuse(size, f"all {self._kind} requests under way hold {self._total}")
        if own and own + size > (self._most - others) // 2:
            self._refuse(
                size, f"{self._kind} requests under way of {tenant} hold {own}, others {others}"
            )
        self._total += size
        self._of[tenant] += size
        try:
            yield
        finally:
            self._total -= size
            self._of[tenant] -= size
            if not self._of[tenant]:
                del self._of[tenant]

    def _refuse(self, size: int, why: str) -> None:
        raise ResourceExhaustedError(
            f"no room for a request of {size} bytes: {why} of {self._most} bytes; retry when some have ended"
        )


class RequestBudget:
    """The budget of one daemon, shared by all its servers. Not thread-safe: used on the event loop's thread only."""

    def __init__(
        self,
        tenant: Callable[[bytes], str],
        *,
        max_large_bytes: int = MAX_LARGE_BYTES,
        max_ordinary_bytes: int = MAX_ORDINARY_BYTES,
    ) -> None:
        """`tenant` returns the tenant of an encoded request."""
        self._tenant = tenant
        self._ordinary = _Pool(max_ordinary_bytes, "ordinary")
        self._large = _Pool(max_large_bytes, "large")
        self._decoding = asyncio.Lock()

    @contextmanager
    def held(self, raw: bytes) -> Iterator[None]:
        """Count a request while the block runs. Raises ResourceExhaustedError if the pool has no room for it."""
        pool = self._large if len(raw) > LARGE_BYTES else self._ordinary
        with pool.held(len(raw), self._tenant(raw)):
            yield

    @asynccontextmanager
    async def decoding(self, raw: bytes) -> AsyncIterator[None]:
        """Decode the request in this block. Large requests are decoded one by one, each in its own turn of the loop."""
        if len(raw) <= LARGE_BYTES:
            yield
            return
        async with self._decoding:
            yield
            await asyncio.sleep(0)


def tenant_of_request(
    raw: bytes,
    *,
    sandbox: Callable[[str], Sandbox | None],
    container: Callable[[str], Container | None],
) -> str:
    """The namespace of the pod that an encoded request concerns, or "no pod" if there is none or it is unknown.

    Only field 1 is read: it identifies the object in every request that can be large, and encoders write it first.
    """
    first = _first_field(raw)
    object_id = first.decode("ascii", "replace") if len(first) <= _MAX_ID_BYTES else ""
    if (found := container(object_id)) is not None:
        namespace = found.record.pod_namespace
    elif (pod := sandbox(object_id)) is not None:
        namespace = pod.record.metadata.namespace
    else:
        namespace = _namespace_of_config(first)
    return tenant_of(namespace[:_MAX_NAMESPACE_CHARS]) or "no pod"


def _namespace_of_config(config: bytes) -> str:
    """The namespace in an encoded PodSandboxConfig, of which the beginning suffices."""
    try:
        return api.PodSandboxMetadata.FromString(_first_field(config)).namespace
    except DecodeError:
        return ""


def _first_field(raw: bytes) -> bytes:
    """The beginning of field 1, a string or a message, if the encoding starts with it; else b""."""
    if not raw.startswith(_FIELD_1):
        return b""
    size = shift = 0
    for at, byte in enumerate(raw[1:_MAX_VARINT_BYTES], 2):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return raw[at : at + min(size, _MAX_HEAD_BYTES)]
    return b""
