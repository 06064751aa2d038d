"""Feeds the service manager's watchdog, and extends its timeout during a long start.

The watchdog is fed only while the event loop turns and the daemon's CRI answers on its own socket. If the daemon hangs,
the manager restarts it, and containers keep running.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cri_shim.host.notify import ALIVE, extend_timeout, notify, status, watchdog_interval_s
from cri_shim.rpc.self_check import SelfCheck

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger()
FED_PER_INTERVAL = 3
"""Feeds per interval, so that two may fail."""
PATIENCE_S = 60.0
"""The extension of the start timeout, repeated every `PATIENCE_INTERVAL_S`."""
PATIENCE_INTERVAL_S = 15.0


async def feed_watchdog(socket_path: Path | None) -> None:
    """Feed the watchdog until cancelled. Returns at once if the manager has none.

    Without a unix socket only the event loop is checked.
    """
    interval_s = watchdog_interval_s()
    if interval_s is None:
        return
    pause_s = interval_s / FED_PER_INTERVAL
    if socket_path is None:
        while True:
            notify(ALIVE)
            await asyncio.sleep(pause_s)
    check = SelfCheck(socket_path)
    try:
        while True:
            problem = await check.problem(pause_s)
            if problem:
                log.error(
                    "CRI does not answer on its own socket; the watchdog is not fed",
                    problem=problem,
                )
            else:
                notify(ALIVE)
            await asyncio.sleep(pause_s)
    finally:
        await check.close()


async def ask_for_patience(ready: asyncio.Event) -> None:
    """Extend the start timeout until `ready` is set: recovery of many objects may exceed the unit's timeout."""
    while not ready.is_set():
        notify(extend_timeout(PATIENCE_S), status("recovering pods and containers"))
        try:
            async with asyncio.timeout(PATIENCE_INTERVAL_S):
                await ready.wait()
        except TimeoutError:
            continue
