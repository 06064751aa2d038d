"""What the verbose forms of the status calls tell an operator beyond CRI's fields.

Rules: a request and its runtime-spec have megabytes if their author likes. They are JSON already and pass as they are:
taken apart and put together again, the largest would hold the loop for more than a tenth of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT

if TYPE_CHECKING:
    from cri_shim.cni.result import Address, Result
    from cri_shim.paths import ObjectPaths
    from cri_shim.sandbox.model import NetworkAttachment
    from cri_shim.sandbox.store import Container, Sandbox

_NONE = msgspec.Raw(b"[]")


def sandbox_details(
    sandbox: Sandbox, paths: ObjectPaths, networks: list[dict[str, object]], *, cgroup: str
) -> dict[str, object]:
    """Processes, network, runtime-spec and request of a sandbox; `networks` are `network_details`."""
    status = sandbox.status
    return {
        "sandboxID": sandbox.id,
        "pid": status.process.pid if status.process else 0,
        "monitorPid": status.monitor.pid if status.monitor else 0,
        "runtimeHandler": sandbox.record.handler,
        "image": sandbox.record.image_id,
        "snapshot": {"layers": list(sandbox.record.layers), "upper": str(paths.upper_dir)},
        "hostname": sandbox.record.hostname,
        "cgroup": cgroup,
        "netns": sandbox.record.netns,
        "cgroupParent": sandbox.record.cgroup_parent,
        "attachments": [msgspec.to_builtins(a) for a in status.attachments],
        "ips": list(status.ips),
        "cniResult": networks,
        "readyAt": status.ready_at_ns,
        "notReadySince": status.stopped_at_ns,
        "reason": status.reason,
        "rootDirectory": str(paths.root_dir),
        "resourcesUpdate": status.sizing,
        "runtimeSpec": _spec(paths)[0],
        "config": sandbox.record.config,
    }


def network_details(attachment: NetworkAttachment, result: Result | None) -> dict[str, object]:
    """What one network's plugins say they made in the pod; without a result, that they did not get that far."""
    told: dict[str, object] = {
        "network": attachment.network,
        "interface": attachment.ifname,
        "attached": result is not None,
    }
    if result is None:
        return told
    inside = {i: each for i, each in enumerate(result.interfaces) if each.sandbox}
    interfaces = [
        {
            "name": interface.name,
            "mac": interface.mac or "",
            "ips": [_address(ip) for ip in result.ips if ip.interface == index],
        }
        for index, interface in inside.items()
    ]
    # Plugins of the early versions name no interfaces: what they made is the one that they were asked for.
    if nowhere := [_address(ip) for ip in result.ips if ip.interface is None]:
        asked = next((each for each in interfaces if each["name"] == attachment.ifname), None)
        if asked is None:
            interfaces.append({"name": attachment.ifname, "mac": "", "ips": nowhere})
        else:
            asked["ips"] = [*asked["ips"], *nowhere]
    return {
        **told,
        "interfaces": interfaces,
        "routes": [{"dst": route.dst, "gw": route.gw or ""} for route in result.routes],
        "dns": {k: v for k, v in msgspec.structs.asdict(result.dns).items() if v},
    }


def _address(ip: Address) -> dict[str, str]:
    return {"address": str(ip.address), "gateway": ip.gateway}


def container_details(
    container: Container, paths: ObjectPaths, *, cgroup: str
) -> dict[str, object]:
    """Processes, root file system, volumes, limits, runtime-spec and request of a container."""
    status = container.status
    spec, mounts = _spec(paths)
    return {
        "sandboxID": container.sandbox_id,
        "pid": status.process.pid if status.process and not status.finished_at_ns else 0,
        "monitorPid": status.monitor.pid if status.monitor else 0,
        "runtimeHandler": container.record.handler,
        "image": container.record.image_id,
        "snapshot": {"layers": list(container.record.layers), "upper": str(paths.upper_dir)},
        "mounts": mounts,
        "imageVolumes": [msgspec.to_builtins(each) for each in container.record.image_volumes],
        "cgroup": cgroup,
        "resourcesUpdate": status.resources,
        "rootDirectory": str(paths.root_dir),
        "runtimeSpec": spec,
        "config": container.record.config,
    }


class _Mounts(msgspec.Struct):
    """What is looked for in a runtime-spec; the rest is only read over."""

    mounts: msgspec.Raw = _NONE


def _spec(paths: ObjectPaths) -> tuple[msgspec.Raw | None, msgspec.Raw]:
    """The runtime-spec, None when the bundle is gone, and its mounts."""
    try:
        document = paths.spec_file.read_bytes()
        return msgspec.Raw(document), msgspec.json.decode(document, type=_Mounts).mounts
    except (OSError, *UNREADABLE_DOCUMENT):
        return None, _NONE
