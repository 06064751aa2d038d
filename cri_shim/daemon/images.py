"""The image store of a root: opened by the daemon with everything else, or alone where no daemon runs.

Rules: one process at a time has a store, the one that holds the root's lock. Alone or not, it is the same store with
the same configuration, and keeps what containers stand on: without a daemon, what their records on disk name.
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
"""For a pull that is being undone when a store that was opened alone is closed."""


class Images(NamedTuple):
    """A store that was opened alone, and what brings images into it."""

    store: ImageStore
    puller: Puller


async def open_store(
    config: Config, paths: Paths, reaper: Reaper, in_use: Callable[[], Collection[str]]
) -> ImageStore:
    """The images of this root; `in_use` gives the names of the layers that containers stand on.

    Raises CriShimError when the directories can't be used.
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
    """What the configuration pins: what it says so of, and the pause image."""
    return (*config.images.pinned, *filter(None, [config.sandbox.image]))


def layers_of(objects: Iterable[Sandbox | Container]) -> set[str]:
    """Names of the layers that these stand on."""
    return {layer for item in objects for layer in item.record.layers_in_use}


@asynccontextmanager
async def open_offline(config: Config) -> AsyncIterator[Images]:
    """The images of the configured root, for a process that is no daemon. On the main thread, in a running loop.

    Raises AlreadyExistsError while another process has that root, PermissionRefusedError, ConfigError, CriShimError.
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
    """What pods and containers of the former daemon may stand on; all there is, where a record can't be read."""
    used: set[str] = set()
    stores: tuple[Store[Sandbox] | Store[Container], ...] = (
        Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox),
        Store("container", paths.containers_dir, paths.container, read_container),
    )
    for store in stores:
        for _, item in store.load():
            if isinstance(item, CorruptStateError):
                log.error("no layer is removed, since a record can't be read", error=str(item))
                with host_step("looking at the layers"):
                    return {path.name for path in paths.layers_dir.glob("*")}
            used |= layers_of([item])
    return used
