"""Processes that records and notes name: written down, read back, and told from others with the same number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import UnknownRuntimeHandlerError, host_step
from cri_shim.host.files import read_bounded, write_atomic
from cri_shim.sandbox.store.model import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import Runtime
    from cri_shim.paths import ObjectPaths


@dataclass(frozen=True, slots=True)
class Held:
    """An object whose processes, and what its runtime and the kernel keep of them, are to be found and taken away."""

    object_id: str
    pod_id: str
    """Its own ID, for a sandbox."""
    handler: str
    cgroup_dir: str
    paths: ObjectPaths


def own_kernel_runtime(runtime_of: Callable[[str], Runtime], handler: str) -> Runtime | None:
    """The handler's runtime, if its pods have kernels of their own; None for others, and for one not configured."""
    try:
        runtime = runtime_of(handler)
    except UnknownRuntimeHandlerError:
        return None
    return runtime if runtime.settings.own_kernel else None


def note_top_process(paths: ObjectPaths, process: Process) -> None:
    """Write down below whom everything runs: a container's monitor, before it may do anything, or a pause process."""
    with host_step(f"noting process {process.pid}"):
        write_atomic(paths.top_process_file, msgspec.json.encode(process))


def read_top_process(paths: ObjectPaths) -> Process | None:
    """Who was noted; None if nobody was or the note can't be read."""
    try:
        return msgspec.json.decode(read_bounded(paths.top_process_file, 4096), type=Process)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def running(host: Host, process: Process | None) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    if process is None:
        return False
    entry = host.process_entry(process.pid)
    return entry is not None and entry.start_ticks == process.start_ticks and not entry.zombie
