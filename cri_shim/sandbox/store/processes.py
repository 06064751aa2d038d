"""Stores the top process of an object, reads it back, and checks whether a recorded process still runs."""

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
    """An object whose processes, runtime state and cgroup are to be removed."""

    object_id: str
    pod_id: str
    """The sandbox ID. For a sandbox its own."""
    handler: str
    cgroup_dir: str
    paths: ObjectPaths


def is_configured(runtime_of: Callable[[str], Runtime], handler: str) -> bool:
    """Whether the handler is still in the configuration."""
    try:
        runtime_of(handler)
    except UnknownRuntimeHandlerError:
        return False
    return True


def own_kernel_runtime(runtime_of: Callable[[str], Runtime], handler: str) -> Runtime | None:
    """The handler's runtime if its pods have their own kernels. None for others, and for one that is not configured."""
    try:
        runtime = runtime_of(handler)
    except UnknownRuntimeHandlerError:
        return None
    return runtime if runtime.settings.own_kernel else None


def note_top_process(paths: ObjectPaths, process: Process) -> None:
    """Record the ancestor of all processes of an object: a container's monitor, before it starts work, or a pause
    process.
    """
    with host_step(f"recording process {process.pid}"):
        write_atomic(paths.top_process_file, msgspec.json.encode(process))


def read_top_process(paths: ObjectPaths) -> Process | None:
    """Read the recorded process. None if none was recorded or the file cannot be read."""
    try:
        return msgspec.json.decode(read_bounded(paths.top_process_file, 4096), type=Process)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def running(host: Host, process: Process | None) -> bool:
    """Whether the process still runs: the pid has the recorded start time, and is not a zombie."""
    if process is None:
        return False
    entry = host.process_entry(process.pid)
    return entry is not None and entry.start_ticks == process.start_ticks and not entry.zombie
