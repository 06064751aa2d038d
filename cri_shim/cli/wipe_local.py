"""Wipes a root without a daemon: opens the root in this process, with the daemon's locks.

Rules:
- Ctrl-C ends the wipe after the object that is being removed. Another wipe removes the rest.
- Only errors are logged. The command reports what is left.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cri_shim import log
from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.cli.serve import CNI_CACHE_DIR
from cri_shim.daemon.offline import open_to_wipe
from cri_shim.errors import AlreadyExistsError, UnavailableError
from cri_shim.rpc.admin_wipe import answer_wipe
from cri_shim.rpc.client import local_errors_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.config import Config


def wipe_offline(
    config: Config,
    request: admin.WipeRequest,
    tell: Callable[[admin.WipeResponse], None],
    *,
    no_daemon: str,
) -> None:
    """Wipe the configured root; `no_daemon` is why the daemon is not used.

    Raises UnavailableError if another process has the root, and what `open_to_wipe` raises.
    """
    log.configure(level="error", format=config.log.format)
    step = admin.WipeProgress(step="no daemon runs: recovering its state")
    tell(admin.WipeResponse(progress=step))
    try:
        asyncio.run(_wipe(config, request, tell))
    except AlreadyExistsError as error:
        raise UnavailableError(
            f"{no_daemon}; nothing can be wiped without it either: {error}. If that is the daemon, it is starting, "
            "stopping or hanging: retry, and check its log"
        ) from error


async def _wipe(
    config: Config,
    request: admin.WipeRequest,
    tell: Callable[[admin.WipeResponse], None],
) -> None:
    async def send(answer: admin.WipeResponse) -> None:
        tell(answer)

    async with open_to_wipe(config, cni_cache_dir=CNI_CACHE_DIR) as wipe:
        with local_errors_of("cannot wipe"):
            await answer_wipe(wipe, request, send)
