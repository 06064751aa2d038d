"""What the verbose forms of the status calls tell an operator beyond CRI's fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cri_shim.paths import ObjectPaths
    from cri_shim.sandbox.store import Container, Sandbox


def sandbox_details(sandbox: Sandbox, paths: ObjectPaths) -> dict[str, object]:
    """Processes, network and request of a sandbox."""
    status = sandbox.status
    return {
        "sandboxID": sandbox.id,
        "pid": status.process.pid if status.process else 0,
        "monitorPid": status.monitor.pid if status.monitor else 0,
        "runtimeHandler": sandbox.record.handler,
        "image": sandbox.record.image_id,
        "netns": sandbox.record.netns,
        "cgroupParent": sandbox.record.cgroup_parent,
        "attachments": [msgspec.to_builtins(a) for a in status.attachments],
        "ips": list(status.ips),
        "reason": status.reason,
        "rootDirectory": str(paths.root_dir),
        "config": msgspec.json.decode(sandbox.record.config),
    }


def container_details(
    container: Container, paths: ObjectPaths, *, cgroup: str
) -> dict[str, object]:
    """Processes, root file system, runtime-spec and request of a container."""
    status = container.status
    try:
        spec = msgspec.json.decode(paths.spec_file.read_bytes())
    except (OSError, msgspec.MsgspecError):
        spec = None
    return {
        "sandboxID": container.sandbox_id,
        "pid": status.process.pid if status.process and not status.finished_at_ns else 0,
        "monitorPid": status.monitor.pid if status.monitor else 0,
        "runtimeHandler": container.record.handler,
        "image": container.record.image_id,
        "snapshot": {"layers": list(container.record.layers), "upper": str(paths.upper_dir)},
        "cgroup": cgroup,
        "rootDirectory": str(paths.root_dir),
        "runtimeSpec": spec,
        "config": msgspec.json.decode(container.record.config),
    }
