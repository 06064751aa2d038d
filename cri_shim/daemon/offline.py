"""Everything of a root, opened by a process that is no daemon, to be taken away.

Rules: all of the daemon's locks are held meanwhile, so that none starts beside it. What the daemon left is taken over
as by its own start, since a process can be ended in order only by who watches it; then it is the same wipe.
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
    """The configured root's wipe. On the main thread, in a running loop.

    Raises AlreadyExistsError while another process has that root, PermissionRefusedError, ConfigError, CriShimError.
    """
    paths = Paths(config.root, config.state)
    async with AsyncExitStack() as stack:
        for lock in daemon_locks(config, paths):
            stack.enter_context(lock)
        prepare_directories(paths)
        reaper = Reaper()
        reaper.open()
        stack.callback(reaper.close)
        # Nothing is made here: what containers could be given needs no asking.
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
