"""Opens a root in a process that is not the daemon, to wipe it.

Rules:
- All locks of the daemon are held, so that no daemon starts meanwhile.
- The state on disk is recovered as at the daemon's start: only a process that watches containers can end them in order.
  After that the wipe is the same as the daemon's.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from cri_shim.daemon.build import Parts, build
from cri_shim.daemon.directories import prepare_directories
from cri_shim.daemon.locks import daemon_locks
from cri_shim.host.process import Reaper
from cri_shim.paths import Paths
from cri_shim.sandbox.spec.node_resources import NodeResources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cri_shim.config import Config
    from cri_shim.sandbox.recovery.wipe import Wipe

WORK_GRACE_S = 5.0


@asynccontextmanager
async def open_to_wipe(config: Config, *, cni_cache_dir: Path) -> AsyncIterator[Wipe]:
    """Recover the configured root, and yield its wipe. Call it on the main thread, in a running loop.

    Raises AlreadyExistsError if another process holds the root, PermissionRefusedError, ConfigError, CriShimError.
    """
    paths = Paths(config.root, config.state)
    async with AsyncExitStack() as stack:
        for lock in daemon_locks(config, paths):
            stack.enter_context(lock)
        prepare_directories(paths)
        reaper = Reaper()
        reaper.open()
        stack.callback(reaper.close)
        # No container is created here, so the node's resources are not opened.
        parts = await build(
            config,
            paths=paths,
            reaper=reaper,
            cni_cache_dir=cni_cache_dir,
            node_resources=NodeResources(),
        )
        stack.push_async_callback(parts.images.close)
        parts.exits.open(parts.exit_dispatcher.dispatch)
        stack.callback(parts.exits.close)
        stack.push_async_callback(_end, parts)
        parts.cni.load()
        stack.callback(parts.cni.close)
        parts.pending_deletes.load()
        await parts.leftover_plugins.find()
        await parts.recovery.run()
        yield parts.wipe


async def _end(parts: Parts) -> None:
    await parts.puller.close(WORK_GRACE_S)
    await parts.pods.close(WORK_GRACE_S)
    await parts.container_service.close(WORK_GRACE_S)
    await parts.background.close(WORK_GRACE_S)
    parts.handlers.close()
