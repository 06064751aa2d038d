"""The service manager's watchdog, and its patience during a long start.

Rules: the watchdog is fed only while the event loop turns *and* our own CRI answers over its socket; who feeds it
anyway would hide the hang that it is for. What comes of a hang is the manager's: a restart, which leaves all containers
alone.
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
"""Two answers may get lost."""
PATIENCE_S = 60.0
"""What is asked for again and again while the start goes on."""
PATIENCE_INTERVAL_S = 15.0


async def feed_watchdog(socket_path: Path | None) -> None:
    """Until cancelled, or at once where the manager has no watchdog. Without a unix socket only the loop counts."""
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
                log.error("our own CRI does not answer; the watchdog is not fed", problem=problem)
            else:
                notify(ALIVE)
            await asyncio.sleep(pause_s)
    finally:
        await check.close()


async def ask_for_patience(ready: asyncio.Event) -> None:
    """Until that: what a former daemon left may take longer than the unit's start timeout, object by object."""
    while not ready.is_set():
        notify(extend_timeout(PATIENCE_S), status("taking over what the former daemon left"))
        try:
            async with asyncio.timeout(PATIENCE_INTERVAL_S):
                await ready.wait()
        except TimeoutError:
            continue
