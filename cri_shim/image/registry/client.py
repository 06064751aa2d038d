"""A registry client: manifests, documents and layers of one repository, from whichever server has them.

Rules:
- Servers are asked in the order of `hosts.toml`, the registry itself last. A server with a passing failure is asked
  again in the next round, after a pause; one that can't help is dropped. The last server's answer decides the error.
- A server that answered is asked first from then on, so that a pull sees one state of the registry.
- Only digests make bytes trustworthy. An interrupted layer resumes where it stopped (`blob`).
- Any fault in a server's answer, in its status or its content, leads to the next server.
- Every wait ends: a request without a byte for `stall_s` is over. A silent connection is dropped earlier, in time for
  another attempt.

Spec: distribution 1.1, "Pull". Imported with the first pull, since it imports aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import structlog

from cri_shim.errors import BadArchiveError, RegistryUnavailableError
from cri_shim.image.manifest import INDEX_TYPES, MANIFEST_TYPES, digest_of
from cri_shim.image.reference import is_digest
from cri_shim.image.registry.blob import BlobTransfer, Sink
from cri_shim.image.registry.errors import Fault, ServerFailure, verdict
from cri_shim.image.registry.hosts import Capability
from cri_shim.image.registry.http import RegistryHttp, read_bounded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    import aiohttp

    from cri_shim.image.manifest import Descriptor
    from cri_shim.image.reference import Reference
    from cri_shim.image.registry.credentials import Credentials
    from cri_shim.image.registry.hosts import Endpoint

log = structlog.get_logger()

ROUNDS = 5
"""How often every server is asked before a passing failure becomes final."""
_FIRST_PAUSE_S = 0.25
_MAX_RETRY_AFTER_S = 60.0
"""The longest Retry-After that a pull waits for. For longer ones, the kubelet's back-off between pulls does it."""
_SILENCE = 0.25
"""The part of `stall_s` after which a silent connection is dropped in favour of a new one or another server."""
_PROGRESS_BYTES = 1 << 20
"""The bytes a connection must deliver before it breaks for the count of attempts to restart. Bounds the attempts."""
_ACCEPT = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
T = TypeVar("T")


class Document(NamedTuple):
    """A manifest or index from a registry, checked against its digest."""

    data: bytes
    content_type: str
    digest: str


@contextlib.asynccontextmanager
async def open_registry(
    reference: Reference,
    endpoints: Sequence[Endpoint],
    credentials: Credentials | None,
    *,
    stall_s: float,
    environment: Mapping[str, str] = os.environ,
) -> AsyncIterator[Registry]:
    """A client for the registry of `reference`, with `endpoints` as its servers. Connections last while this is open.

    Only the registry itself is shown `credentials`, never a mirror. `environment` names the proxies.
    """
    async with RegistryHttp(
        lambda endpoint: credentials if endpoint.is_registry else None,
        f"repository:{reference.path}:pull",
        environment=environment,
    ) as http:
        yield Registry(http, reference, endpoints, stall_s=stall_s)


class Registry:
    """One repository, during one pull."""

    def __init__(
        self,
        http: RegistryHttp,
        reference: Reference,
        endpoints: Sequence[Endpoint],
        *,
        stall_s: float,
    ) -> None:
        self._http = http
        self._reference = reference
        self._endpoints = list(endpoints)
        self._last = endpoints[-1]
        self._stall_s = stall_s
        self._senders: dict[str, set[str]] = {}
        """Blob digest -> URLs of the servers that sent its last byte."""
        self._patience_s = stall_s * _SILENCE or None

    async def digest(self, wanted: str) -> str | None:
        """The digest of the manifest that a tag or digest means now; None if the registry doesn't say.

        Cheaper than `manifest`, which some registries count against a rate limit. Raises as `manifest`.
        """

        async def attempt(endpoint: Endpoint) -> str | None:
            path = self._path(endpoint, f"manifests/{wanted}")
            try:
                async with self._http.request(
                    endpoint, "HEAD", path, {"Accept": _ACCEPT}, patience_s=self._patience_s
                ) as response:
                    digest = response.headers.get("Docker-Content-Digest", "")
            except ServerFailure as failure:
                if failure.fault is Fault.BROKEN:
                    return None  # a server without HEAD may still support GET
                raise
            return digest if is_digest(digest) else None

        return await self._ask("resolving the reference", wanted, attempt)

    async def manifest(
        self,
        wanted: str,
        max_bytes: int,
        check: Callable[[Document], Awaitable[None]] | None = None,
    ) -> Document:
        """Fetch the manifest or index of a tag or digest.

        A document for which `check` raises BadArchiveError counts as its server's failure; the next server is asked.

        Raises NotFoundError, RegistryAuthError, RegistryUnavailableError, and BadArchiveError for documents with a
        wrong digest or refused by `check`. Each error names the servers and their answers.
        """

        async def attempt(endpoint: Endpoint) -> Document:
            path = self._path(endpoint, f"manifests/{wanted}")
            async with self._http.request(
                endpoint, "GET", path, {"Accept": _ACCEPT}, patience_s=self._patience_s
            ) as response:
                data = await self._read(response, max_bytes, endpoint)
                digest = digest_of(data)
                promised = response.headers.get("Docker-Content-Digest", "")
                # With a tag, the header is the only digest to compare with.
                for expected in (wanted, promised):
                    if is_digest(expected) and digest != expected:
                        raise _damaged(endpoint, f"manifest {expected}", digest)
                document = Document(data, response.content_type, digest)
            if check is not None:
                try:
                    await check(document)
                except BadArchiveError as error:
                    raise ServerFailure(endpoint.origin, Fault.DAMAGED, str(error)) from error
            return document

        return await self._ask("fetching the manifest", wanted, attempt)

    async def document(self, blob: Descriptor, max_bytes: int) -> bytes:
        """Fetch a small blob. Raises as `manifest`."""

        async def attempt(endpoint: Endpoint) -> bytes:
            path = self._path(endpoint, f"blobs/{blob.digest}")
            async with self._http.request(
                endpoint, "GET", path, {}, patience_s=self._patience_s
            ) as response:
                data = await self._read(response, max_bytes, endpoint)
                if digest_of(data) != blob.digest:
                    raise _damaged(endpoint, f"blob {blob.digest}", digest_of(data))
                return data

        return await self._ask("fetching the configuration", blob.digest, attempt, kind="blob")

    async def download(self, blob: Descriptor, sink: Sink) -> str:
        """Write the bytes of `blob` to `sink`, exactly as many as its descriptor states. The sink checks the digest.

        Returns the server that sent the last byte. A second download of a blob means that the first was of no use, so
        servers that have not sent it come first then. Raises as `manifest`, and what the sink raises.
        """

        async def attempt(endpoint: Endpoint) -> str:
            start = sink.received
            try:
                path = self._path(endpoint, f"blobs/{blob.digest}")
                # With a single server there is nobody to switch to, so only `stall_s` counts.
                patience_s = self._patience_s if len(self._endpoints) > 1 else None
                await transfer.go_on(endpoint, path, answers_within_s=patience_s)
                if sink.received < blob.size:
                    how_far = f"after {sink.received} of {blob.size} bytes"
                    raise ServerFailure(
                        endpoint.origin, Fault.PASSING, f"the connection ended {how_far}"
                    )
            except ServerFailure as failure:
                failure.progressed = sink.received - start >= _PROGRESS_BYTES
                raise
            senders.add(endpoint.url)
            return endpoint.origin

        senders = self._senders.setdefault(blob.digest, set())
        watchdog = asyncio.timeout(self._stall_s or None)
        transfer = BlobTransfer(
            self._http, blob, sink, watchdog, stall_s=self._stall_s, patience_s=self._patience_s
        )
        return await self._ask(
            f"fetching layer {blob.digest}",
            blob.digest,
            attempt,
            kind="blob",
            distrusted=frozenset(senders),
            watchdog=watchdog,
        )

    async def _ask(
        self,
        doing: str,
        wanted: str,
        attempt: Callable[[Endpoint], Awaitable[T]],
        *,
        kind: str = "image",
        distrusted: Collection[str] = (),
        watchdog: asyncio.Timeout | None = None,
    ) -> T:
        """Return the first server's success. Raises the verdict over all servers."""
        need = Capability.PULL if is_digest(wanted) else Capability.RESOLVE
        candidates = [endpoint for endpoint in self._endpoints if need in endpoint.capabilities]
        if not candidates:
            raise RegistryUnavailableError(
                f"{self._reference}: hosts.toml for {self._reference.domain} names no host with the capability {need}"
            )
        last = self._last if self._last in candidates else candidates[-1]
        missing = (kind, wanted) if kind == "blob" else (kind, str(self._reference))
        ordered = sorted(candidates, key=lambda endpoint: endpoint.url in distrusted)
        asking = _Asking(self, f"{self._reference}: {doing}", missing, ordered, last)
        try:
            async with watchdog or asyncio.timeout(self._stall_s or None):
                return await asking.run(attempt)
        except TimeoutError:
            raise asking.out_of_time(self._stall_s) from None

    async def _read(
        self, response: aiohttp.ClientResponse, max_bytes: int, endpoint: Endpoint
    ) -> bytes:
        return await read_bounded(response, max_bytes, endpoint, silence_s=self._patience_s)

    def _path(self, endpoint: Endpoint, rest: str) -> str:
        path = f"/{self._reference.path}/{rest}"
        # `ns` tells a mirror of several registries which one is meant; containerd introduced it.
        return path if endpoint.is_registry else f"{path}?ns={self._reference.domain}"

    def prefer(self, endpoint: Endpoint) -> None:
        """Ask this server first from now on."""
        self._endpoints.remove(endpoint)
        self._endpoints.insert(0, endpoint)


class _Asking:
    """One request on its way through the servers."""

    def __init__(
        self,
        registry: Registry,
        doing: str,
        missing: tuple[str, str],
        candidates: list[Endpoint],
        last: Endpoint,
    ) -> None:
        self._registry = registry
        self._doing = doing
        self._missing = missing
        self._candidates = candidates
        self._last = last
        self._failures: dict[str, ServerFailure] = {}
        self._asked: Endpoint = candidates[0]
        self._pausing = False

    async def run(self, attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
        rounds = 0
        while True:
            pause_s = _MAX_RETRY_AFTER_S + 1
            for endpoint in list(self._candidates):
                self._asked, self._pausing = endpoint, False
                try:
                    result = await attempt(endpoint)
                except ServerFailure as failure:
                    self._note(endpoint, failure)
                    if failure.progressed:
                        rounds = 0
                    pause_s = min(pause_s, failure.retry_after_s)
                else:
                    self._registry.prefer(endpoint)
                    return result
            rounds += 1
            if not self._candidates or rounds >= ROUNDS or pause_s > _MAX_RETRY_AFTER_S:
                raise self._verdict()
            # Randomised, so that the nodes of a cluster don't retry in step.
            backoff_s = _FIRST_PAUSE_S * 2 ** (rounds - 1) * random.uniform(0.75, 1.25)  # noqa: S311
            self._pausing = True
            await asyncio.sleep(max(pause_s, backoff_s))

    def _note(self, endpoint: Endpoint, failure: ServerFailure) -> None:
        self._failures[endpoint.url] = failure
        log.debug("a registry server failed a request", doing=self._doing, said=str(failure))
        if failure.fault is not Fault.PASSING:
            self._candidates.remove(endpoint)
            # The registry itself has answered: its mirrors can't know better.
            if endpoint is self._last and failure.fault in (Fault.MISSING, Fault.REFUSED):
                raise self._verdict()

    def out_of_time(self, stall_s: float) -> Exception:
        """The error of a stall: the fault of the server being asked, unless all have given a reason and we pause."""
        nothing_came = f"no bytes for {stall_s:g} s"
        if self._pausing:
            self._doing += f": {nothing_came}"
        else:
            self._failures[self._asked.url] = ServerFailure(
                self._asked.origin, Fault.PASSING, nothing_came, answered=False
            )
        return self._verdict()

    def _verdict(self) -> Exception:
        failures = [said for url, said in self._failures.items() if url != self._last.url]
        if self._last.url in self._failures:
            failures.append(self._failures[self._last.url])
        return verdict(self._doing, *self._missing, failures)


def _damaged(endpoint: Endpoint, what: str, digest: str) -> ServerFailure:
    return ServerFailure(
        endpoint.origin, Fault.DAMAGED, f"{what}: what it sent has the digest {digest}"
    )
