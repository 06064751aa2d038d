"""Ends the processes of pods with their own kernels: through the runtime if it answers, otherwise on the node.

Rules:
- Calls of the runtime have a deadline (`runtime.command_timeout`). If it does not answer, the pod's processes on the
  node are killed: the hypervisor or sandbox process, and the processes that represent containers.
- These processes survive their monitor. Then they are children of the daemon, or of an ancestor that inherited the
  children of a former daemon, and their command lines name the object. No other processes are considered.
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
    """Have the runtime kill all processes of a container. Returns False if it does not answer in time.

    An error of the runtime counts as an answer: the caller sees whether processes still run.
    """
    with step("killing through the runtime"):
        try:
            await runtime.kill(object_id, signal.SIGKILL, all_processes=True)
        except DeadlineError as error:
            log.warning("the runtime does not answer", id=object_id, error=str(error))
            return False
        except CriShimError as error:
            log.debug("runtime kill failed", id=object_id, error=str(error))
    return True


async def signal_inside(runtime: Runtime, object_id: str, signal_number: int) -> None:
    """Have the runtime deliver a signal to a container. An error is only logged, since the container may just end."""
    try:
        await runtime.kill(object_id, signal_number)
    except CriShimError as error:
        log.warning("cannot deliver signal", id=object_id, signal=signal_number, error=str(error))


async def asks_to_delete(runtime: Runtime, object_id: str) -> bool:
    """Have the runtime delete a container. Returns False if it does not answer in time."""
    try:
        await runtime.delete(object_id, force=True)
    except DeadlineError as error:
        log.warning("the runtime does not answer", id=object_id, error=str(error))
        return False
    except CriShimError as error:
        log.warning("runtime delete failed", id=object_id, error=str(error))
    return True


async def kill_strays(host: Host, object_id: str) -> None:
    """Kill the processes of an object whose monitor has ended, with their descendants. Raises DeadlineError."""
    give_up_at = time.monotonic() + KILL_TIMEOUT_S
    while found := await in_time(
        "looking for processes without a monitor", host.orphans_naming, object_id
    ):
        left_s = give_up_at - time.monotonic()
        if left_s <= 0:
            pids = ", ".join(str(entry.pid) for entry in found)
            raise DeadlineError(
                f"{object_id}: processes {pids} did not end within {KILL_TIMEOUT_S:g} s of SIGKILL"
            )
        for entry in found:
            log.info("killing a process without a monitor", id=object_id, pid=entry.pid)
            with step("killing processes without a monitor"):
                await host.kill_family(entry.pid, entry.start_ticks, timeout_s=left_s)
        await host.ends_of([(entry.pid, entry.start_ticks) for entry in found], left_s)
