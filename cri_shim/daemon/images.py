"""Opens the image store of a root: for the daemon, or for a command without a daemon.

Rules:
- One process at a time has a store: the one that holds the root's lock.
- Both use the same code and configuration. Both keep the layers that containers use: without a daemon, those that the
  records on disk name.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import structlog

from cri_shim.daemon.locks import root_lock
from cri_shim.errors import CorruptStateError, host_step
from cri_shim.host.process import Reaper
from cri_shim.image.pull import Puller
from cri_shim.image.store import ImageStore
from cri_shim.paths import Paths
from cri_shim.sandbox.store.store import Container, Sandbox, Store, read_container, read_sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable

    from cri_shim.config import Config

log = structlog.get_logger()
PULL_GRACE_S = 5.0
"""Time for the undo of a pull when a store without a daemon is closed."""


class Images(NamedTuple):
    """A store that was opened without a daemon, and its puller."""

    store: ImageStore
    puller: Puller


async def open_store(
    config: Config, paths: Paths, reaper: Reaper, in_use: Callable[[], Collection[str]]
) -> ImageStore:
    """Open the store; `in_use` returns the names of the layers that containers use.

    Raises CriShimError if the directories cannot be used.
    """
    with host_step(f"opening the images of {paths.root}"):
        return await ImageStore.open(
            images_dir=paths.images_dir,
            layers_dir=paths.layers_dir,
            reaper=reaper,
            in_use=in_use,
            pinned=pinned(config),
            discard_blobs=config.images.discard_blobs,
        )


def pinned(config: Config) -> tuple[str, ...]:
    """The names and patterns of pinned images: the configured ones, and the pause image."""
    return (*config.images.pinned, *filter(None, [config.sandbox.image]))


def layers_of(objects: Iterable[Sandbox | Container]) -> set[str]:
    """The names of the layers that these objects use."""
    return {layer for item in objects for layer in item.record.layers_in_use}


@asynccontextmanager
async def open_offline(config: Config) -> AsyncIterator[Images]:
    """Open the store of the configured root without a daemon. Call it on the main thread, in a running loop.

    Raises AlreadyExistsError if another process holds the root, PermissionRefusedError, ConfigError, CriShimError.
    """
    paths = Paths(config.root, config.state)
    async with AsyncExitStack() as stack:
        stack.enter_context(root_lock(paths))
        reaper = Reaper()
        reaper.open()
        stack.callback(reaper.close)
        used = _layers_on_record(paths)
        store = await open_store(config, paths, reaper, lambda: used)
        stack.push_async_callback(store.close)
        puller = Puller(store, config.images)
        stack.push_async_callback(puller.close, PULL_GRACE_S)
        yield Images(store, puller)


def _layers_on_record(paths: Paths) -> set[str]:
    """The layers that pods and containers on disk use. All layers, if a record cannot be read."""
    used: set[str] = set()
    stores: tuple[Store[Sandbox] | Store[Container], ...] = (
        Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox),
        Store("container", paths.containers_dir, paths.container, read_container),
    )
    for store in stores:
        for _, item in store.load():
            if isinstance(item, CorruptStateError):
                log.error("a record cannot be read, so all layers count as in use", error=str(item))
                with host_step("listing the layers"):
                    return {path.name for path in paths.layers_dir.glob("*")}
            used |= layers_of([item])
    return used
