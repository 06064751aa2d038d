"""How much memory the requests under way may hold together: each from its arrival to its answer.

Rules:
- What counts is a request's bytes on the wire. What is made of them, a message and for a moment a document of it, takes
  some five times as many.
- Ordinary requests and large ones have a pool each, so that large ones never keep an exec or a list out.
- Of what others leave of a pool a tenant, a pod's namespace, has half: whatever its pods do, another's request finds
  room. Who has nothing under way may have one that is larger.
- What finds no room is refused at once, and undecoded: to wait would hold what there is no room for. A kubelet
  calls again.
- A large one is decoded in a turn of the loop of its own: eight of them in one turn were a stall.
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
"""A request of more is a large one: a container with more than a thousand variables."""
_FIELD_1: Final = b"\x0a"
_MAX_VARINT_BYTES: Final = 6
_MAX_ID_BYTES: Final = 64
_MAX_HEAD_BYTES: Final = 8192
"""Of a new pod's configuration, whose metadata come first."""
_MAX_NAMESPACE_CHARS: Final = 63
MAX_LARGE_BYTES: Final = 4 << 20
"""Of all large requests under way. One alone may be larger."""
MAX_ORDINARY_BYTES: Final = 8 << 20
"""Of all others: hundreds of creations."""


class _Pool:
    """The requests under way of one kind."""

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
            self._refuse(size, f"all {self._kind} requests under way have {self._total}")
        if own and own + size > (self._most - others) // 2:
            self._refuse(size, f"those of {tenant} under way have {own}, others {others}")
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
            f"the request has {size} bytes, and {why} of {self._most}: call again when some have ended"
        )


class RequestBudget:
    """Of one daemon, for all its servers; on the loop's thread only."""

    def __init__(
        self,
        tenant: Callable[[bytes], str],
        *,
        max_large_bytes: int = MAX_LARGE_BYTES,
        max_ordinary_bytes: int = MAX_ORDINARY_BYTES,
    ) -> None:
        """`tenant` names whose a request is."""
        self._tenant = tenant
        self._ordinary = _Pool(max_ordinary_bytes, "ordinary")
        self._large = _Pool(max_large_bytes, "large")
        self._decoding = asyncio.Lock()

    @contextmanager
    def held(self, raw: bytes) -> Iterator[None]:
        """Count a request while the block runs. Raises ResourceExhaustedError where there is no room."""
        pool = self._large if len(raw) > LARGE_BYTES else self._ordinary
        with pool.held(len(raw), self._tenant(raw)):
            yield

    @asynccontextmanager
    async def decoding(self, raw: bytes) -> AsyncIterator[None]:
        """Decode in this block. A large one waits for those before it, and what follows is in another turn."""
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
    """The namespace of the pod that a request is about; of what is about none, or an unknown one, "no pod".

    Told by the first field, which names the object in every request that can be large, and which clients write first.
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
    """Of a new pod's."""
    try:
        return api.PodSandboxMetadata.FromString(_first_field(config)).namespace
    except DecodeError:
        return ""


def _first_field(raw: bytes) -> bytes:
    """The bytes of field 1, a string or message, if it comes first; of a longer one the beginning."""
    if not raw.startswith(_FIELD_1):
        return b""
    size = shift = 0
    for at, byte in enumerate(raw[1:_MAX_VARINT_BYTES], 2):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return raw[at : at + min(size, _MAX_HEAD_BYTES)]
    return b""
