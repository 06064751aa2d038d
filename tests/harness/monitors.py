"""Creates a container under a monitor in one step, for tests. The daemon starts the monitor earlier."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.oci.conmon import MonitorRequest, Monitors
    from cri_shim.oci.runtime import Runtime
    from cri_shim.oci.waiting_monitor import Monitored, MonitorIdentity


async def create_monitored(
    monitors: Monitors,
    request: MonitorRequest,
    runtime: Runtime,
    *,
    timeout_s: float,
    on_spawn: Callable[[MonitorIdentity], None],
) -> Monitored:
    """Start a monitor and have it create the container at once. Raises as `start` and `WaitingMonitor.create`."""
    waiting = await monitors.start(request, runtime, on_spawn=on_spawn)
    return await waiting.create(timeout_s=timeout_s)
