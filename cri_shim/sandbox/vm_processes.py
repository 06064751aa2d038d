"""What the node has of a pod with a kernel of its own, ended: by the runtime where it answers, and else without it.

Rules:
- A runtime is asked with a deadline (`runtime.command_timeout`). One that does not answer holds nobody up for longer,
  and what then has to go goes by the kernel: the hypervisor or sandbox process, and what stands for containers.
- These processes outlive their monitor. Then they are children of the daemon, or of whoever inherits those of a daemon
  that has ended, one of its forefathers; and they name the object in their command lines. Nothing else is looked at.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.kernel_call import in_time
from cri_shim.operations import step

if TYPE_CHECKING:
    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import Runtime

log = structlog.get_logger()
KILL_TIMEOUT_S = 10.0


async def asks_to_kill(runtime: Runtime, object_id: str) -> bool:
    """Have the runtime kill all that runs in a container; False when it has not answered in time.

    One that refuses has answered: what it did not know, or could not do, shows in what still runs.
    """
    with step("having the runtime kill what runs"):
        try:
            await runtime.kill(object_id, signal.SIGKILL, all_processes=True)
        except DeadlineError as error:
            log.warning("the runtime does not answer", id=object_id, error=str(error))
            return False
        except CriShimError as error:
            log.debug("runtime kill failed", id=object_id, error=str(error))
    return True


async def signal_inside(runtime: Runtime, object_id: str, signal_number: int) -> None:
    """Have the runtime deliver a signal to a container. What it refuses is logged: the container may just end."""
    try:
        await runtime.kill(object_id, signal_number)
    except CriShimError as error:
        log.warning("signal not delivered", id=object_id, signal=signal_number, error=str(error))


async def asks_to_delete(runtime: Runtime, object_id: str) -> bool:
    """Have the runtime forget a container; False when it has not answered in time."""
    try:
        await runtime.delete(object_id, force=True)
    except DeadlineError as error:
        log.warning("the runtime does not answer", id=object_id, error=str(error))
        return False
    except CriShimError as error:
        log.warning("runtime delete failed", id=object_id, error=str(error))
    return True


async def kill_strays(host: Host, object_id: str) -> None:
    """Kill the processes of an object that have lost their monitor, with their families. Raises DeadlineError."""
    give_up_at = time.monotonic() + KILL_TIMEOUT_S
    while found := await in_time(
        "looking for processes without a monitor", host.orphans_naming, object_id
    ):
        left_s = give_up_at - time.monotonic()
        if left_s <= 0:
            pids = ", ".join(str(entry.pid) for entry in found)
            raise DeadlineError(f"{object_id}: processes {pids} can't be killed")
        for entry in found:
            log.info("killing a process without a monitor", id=object_id, pid=entry.pid)
            with step("killing processes without a monitor"):
                await host.kill_family(entry.pid, entry.start_ticks, timeout_s=left_s)
        await host.ends_of([(entry.pid, entry.start_ticks) for entry in found], left_s)
