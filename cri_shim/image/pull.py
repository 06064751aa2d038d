"""Pull an image: resolve its reference, fetch its layers in parallel, commit. A pull that fails leaves nothing.

Rules:
- A pull belongs to the daemon, not to a call. Callers that want the same image with the same credentials share one
  pull, and a caller that goes away does not end it for the others.
- Other credentials make another pull. Otherwise a caller who may not see an image would get it by asking while
  somebody else pulls it.
- Even if the image is here, the registry is asked: it may refuse the credentials, or the tag may have moved.
- Each pull reads the registry configuration again. The first one imports the HTTP client.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from cri_shim import metrics
from cri_shim.errors import (
    BadArchiveError,
    BadImageReferenceError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RegistryAuthError,
    RegistryUnavailableError,
    ResourceExhaustedError,
)
from cri_shim.image.layer_downloads import RegistryLayers
from cri_shim.image.reference import RESERVED_DOMAIN, parse_reference
from cri_shim.image.registry.credentials import load_auth_file
from cri_shim.image.registry.hosts import load_endpoints
from cri_shim.image.resolve import resolve
from cri_shim.operations import Operations, step
from cri_shim.single_flight import SingleFlight
from cri_shim.slots import Share, Slots

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from cri_shim.config.model import ImageSettings
    from cri_shim.image.model import Image, PullProgress
    from cri_shim.image.planned import PlannedImage
    from cri_shim.image.reference import Reference
    from cri_shim.image.registry.client import Registry
    from cri_shim.image.registry.credentials import Credentials
    from cri_shim.image.store import ImageStore

    Progress = Callable[[PullProgress], None]

log = structlog.get_logger()

_DOWNLOADS_OF_ALL = 4
"""Times `max_parallel_downloads` (which is per image): the downloads of all pulls together. It bounds memory."""
_SLOW_DOWNLOADS_OF_ALL = 4
"""Times `max_parallel_downloads`: how many downloads below the minimum rate may go on beside those."""
_DOWNLOADS_OF_A_REGISTRY = 3
"""Times `max_parallel_downloads`: one registry's part of the ordinary and of the slow downloads."""
_PULLS_AT_ONCE = 16
_SLOW_PULLS = 32
"""Beside `_PULLS_AT_ONCE`. A pull keeps up to half a megabyte of its image's documents; few download at a time."""
_PULLS_OF_A_REGISTRY = 32
_SLOW_PULL_AFTER_S = 60.0
_PULLING_PATIENCE_S = 3600.0
_RESOLVED_AT_ONCE = 3
_SLOW_RESOLVED = 2
"""Beside `_RESOLVED_AT_ONCE`. A pull that resolves holds one document of up to 4 MiB, briefly twice that."""
_RESOLVED_OF_A_REGISTRY = 2
_RESOLVED_SLOWLY_AFTER_S = 5.0
_RESOLVING_PATIENCE_S = 30.0
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (NotFoundError, "not_found"),
    (RegistryAuthError, "unauthorized"),
    (RegistryUnavailableError, "unavailable"),
    (DeadlineError, "unavailable"),
    (ResourceExhaustedError, "no_space"),
    (BadArchiveError, "bad_image"),
    (InvalidArgumentError, "invalid"),
)


class Puller:
    """Pulls images into a store."""

    def __init__(
        self, store: ImageStore, settings: ImageSettings, operations: Operations | None = None
    ) -> None:
        """Each pull is registered in `operations`, where verbose statuses and `check` find it."""
        self._store = store
        self._settings = settings
        self._pulls: SingleFlight[Image] = SingleFlight("PullImage")
        self._operations = operations if operations is not None else Operations()
        self._listeners: dict[str, list[Progress]] = {}
        of_one_image = settings.max_parallel_downloads
        self._downloads_of_a_registry = _DOWNLOADS_OF_A_REGISTRY * of_one_image
        self._downloads = Slots(
            _DOWNLOADS_OF_ALL * of_one_image,
            slow_total=_SLOW_DOWNLOADS_OF_ALL * of_one_image,
            slow_after_s=None,  # no time limit: a large layer takes long, so its rate decides (`LayerDownloads`)
            patience_s=0.0,  # the window of the rate was patience enough
        )
        self._pulling = Slots(
            _PULLS_AT_ONCE,
            slow_total=_SLOW_PULLS,
            slow_after_s=_SLOW_PULL_AFTER_S,
            patience_s=_PULLING_PATIENCE_S,
        )
        self._resolving = Slots(
            _RESOLVED_AT_ONCE,
            slow_total=_SLOW_RESOLVED,
            slow_after_s=_RESOLVED_SLOWLY_AFTER_S,
            patience_s=_RESOLVING_PATIENCE_S,
        )

    def reconfigure(self, settings: ImageSettings) -> None:
        """Use new settings for pulls that begin from now on."""
        self._settings = settings

    async def pull(
        self,
        image: str,
        credentials: Credentials | None = None,
        progress: Progress | None = None,
        *,
        abandon: bool = False,
    ) -> Image:
        """Have the image of this reference here, as its registry has it now.

        `progress` is called often, for each layer. If all callers passed `abandon`, the pull ends with the last.

        Raises BadImageReferenceError, NotFoundError, RegistryAuthError, RegistryUnavailableError (each names the
        servers that were asked and their answers), BadArchiveError (the registry sent no image that runs here),
        ResourceExhaustedError (disk full), ConfigError (hosts.toml, the auth file). A failed pull leaves nothing.
        """
        reference = parse_reference(image)
        if reference.domain == RESERVED_DOMAIN:
            raise BadImageReferenceError(
                f"{reference}: images below {RESERVED_DOMAIN} are built in; no registry has them"
            )
        if credentials is not None and not credentials.fit(reference.domain):
            # A client may send its credentials with every pull; no registry but their own may see them.
            log.warning(
                "ignored: credentials for another registry",
                image=str(reference),
                credentials_for=credentials.registry,
            )
            credentials = None
        key = f"pull of {reference}" + (f" as {credentials.key()}" if credentials else "")
        listeners = self._listeners.setdefault(key, [])
        if progress is not None:
            listeners.append(progress)
        try:
            return await self._pulls.run(
                key,
                b"",
                lambda: self._counted(reference, credentials, key),
                abandon=abandon,
            )
        finally:
            if progress is not None:
                listeners.remove(progress)
            # A later pull with this key may have put its own list there.
            if not listeners and self._listeners.get(key) is listeners:
                del self._listeners[key]

    async def end_all(self, grace_s: float) -> None:
        """End the pulls that are under way now, like `close`. New ones may begin."""
        await self._pulls.end_all(grace_s)

    async def close(self, grace_s: float) -> None:
        """Let pulls finish within `grace_s` seconds, then cancel them; a cancelled pull leaves nothing."""
        await self._pulls.close(grace_s)

    async def _counted(
        self, reference: Reference, credentials: Credentials | None, key: str
    ) -> Image:
        started = time.monotonic()
        try:
            with self._operations.begin("PullImage", str(reference)):
                image = await self._pull(reference, credentials, key, started)
        except BaseException as error:
            reason = next((name for kind, name in _REASONS if isinstance(error, kind)), "error")
            if isinstance(error, asyncio.CancelledError):
                reason = "cancelled"
            metrics.IMAGE_PULL_FAILURES.labels(reason).inc()
            raise
        metrics.IMAGE_PULL_SECONDS.observe(time.monotonic() - started)
        return image

    async def _pull(
        self, reference: Reference, credentials: Credentials | None, key: str, started: float
    ) -> Image:
        settings = self._settings
        store = self._store
        endpoints = await asyncio.to_thread(
            load_endpoints, settings.registry_config, reference.domain
        )
        if credentials is None and settings.auth_file is not None:
            credentials = await asyncio.to_thread(load_auth_file, settings.auth_file, reference)
        if store.find(str(reference)) is None:
            # Start the unpacking process now: it is up before the first layer arrives.
            store.warm_up()
        # In a thread: the import takes a third of a second, which would stop every other call.
        module = await asyncio.to_thread(_registry_module)
        async with module.open_registry(
            reference, endpoints, credentials, stall_s=settings.pull_progress_timeout_s
        ) as registry:
            with step("asking the registry"):
                known = await self._unchanged(registry, reference)
            if known is not None:
                log.info("image is up to date", image=str(reference), id=known.id)
                return known
            share = Share(f"registry {reference.domain}", _PULLS_OF_A_REGISTRY)
            async with (
                self._pulling.slot(
                    f"pulling {reference}", share, waiting="waiting for other pulls"
                ),
                store.spool(f"pulling {reference}") as spool_fd,
            ):
                with step("fetching the manifest"):
                    planned = await self._resolve(registry, reference, spool_fd)
                wanted = RegistryLayers(
                    reference,
                    registry,
                    spool_fd,
                    at_once=settings.max_parallel_downloads,
                    slots=self._downloads,
                    of_a_registry=self._downloads_of_a_registry,
                    tell=lambda progress: self._tell(key, progress),
                )
                with step("fetching and unpacking layers"):
                    image, reused = await store.ingest_from_registry(planned, wanted)
        log.info(
            "image pulled",
            image=str(reference),
            id=image.id,
            size=image.size,
            layers=len(planned.layers),
            reused=reused,
            seconds=round(time.monotonic() - started, 3),
        )
        return image

    async def _resolve(
        self, registry: Registry, reference: Reference, spool_fd: int
    ) -> PlannedImage:
        share = Share(f"registry {reference.domain}", _RESOLVED_OF_A_REGISTRY)
        doing = f"{reference}: fetching its manifest and configuration"
        async with (
            self._resolving.slot(doing, share, waiting="waiting for other manifests"),
            self._store.reader(spool_fd) as reader,
        ):
            return await resolve(registry, reference, reader, self._store.stored_document)

    async def _unchanged(self, registry: Registry, reference: Reference) -> Image | None:
        """The image under this name here, if the registry still has the same one under it."""
        known = self._store.find(str(reference))
        if known is None or not self._store.is_whole(known, reference):
            return None
        digest = await registry.digest(reference.digest or reference.tag or "")
        if digest is None:  # the registry doesn't answer HEAD with a digest: fetch the manifest
            return None
        now = self._store.find(str(reference.with_digest(digest)))
        return known if now is not None and now.id == known.id else None

    def _tell(self, key: str, progress: PullProgress) -> None:
        for listener in self._listeners.get(key, ()):
            listener(progress)


def _registry_module() -> ModuleType:
    from cri_shim.image.registry import client as registry

    return registry
