"""Devices: the nodes of a container, and the rules of its device cgroup.

Rules: everything is denied, then requested devices are allowed. The runtime adds /dev/null and the like, which every
container may use without restriction; a request can't take that away. The caller has looked up what a host path is (a
node, or a directory of nodes) and followed links. A privileged container gets every device of the node, unless the
handler is configured otherwise: then it gets what any other container gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.oci.spec.checks import absolute_path, clean_container_path, refuse

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig, Device
    from cri_shim.oci.spec.inputs import (
        ContainerFacts,
        DeviceNode,
        HandlerFacts,
        NodeFacts,
        ResolvedUser,
        Spec,
    )


_EVERYBODYS = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)})
"""null, zero, full, random, urandom, tty, ptmx."""
_MOUNTED = ("/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys")  # noqa: S108 - names in the container
_OWN_FILES = tuple(
    f"/dev/{name}"
    for name in ("console", "full", "null", "ptmx", "random", "tty", "urandom", "zero")
)
"""Device files that exist in every container."""


def host_device_paths(config: ContainerConfig) -> list[str]:
    """The host paths whose nodes the caller must look up before the build.

    Raises InvalidArgumentError for a path that is not absolute.
    """
    return [
        absolute_path(device.host_path, f"devices[{index}].host_path")
        for index, device in enumerate(config.devices)
    ]


def build_devices(
    config: ContainerConfig,
    *,
    container: ContainerFacts,
    handler: HandlerFacts,
    node: NodeFacts,
    user: ResolvedUser,
) -> tuple[list[Spec], list[Spec]]:
    """The spec's `linux.devices` and its `linux.resources.devices`.

    Raises InvalidArgumentError for a device that does not exist, or permissions other than r, w, m.
    """
    context = config.linux.security_context
    every_device = context.privileged and not handler.privileged_without_host_devices
    nodes: dict[str, Spec] = {}
    rules: list[Spec] = [{"allow": every_device, "access": "rwm"}]
    if every_device:
        nodes.update((device.path, _node(device, device.path)) for device in node.host_devices)
    owner = _owner(user) if handler.device_ownership_from_security_context else {}
    for index, device in enumerate(config.devices):
        field = f"devices[{index}]"
        found = container.host_devices.get(device.host_path)
        if not found:
            refuse(f"{field}.host_path", device.host_path, "there is no such device on this node")
        wanted = _access(device, field)
        for host_node in found:
            path = _container_path(device, host_node, field)
            nodes[path] = {**_node(host_node, path), **owner}
            rules.append(
                {
                    "allow": True,
                    "type": host_node.type,
                    "major": host_node.major,
                    "minor": host_node.minor,
                    "access": "rwm" if _is_everybodys(host_node) else wanted,
                }
            )
    return list(nodes.values()), rules


def _is_everybodys(node: DeviceNode) -> bool:
    """Whether every container has the device. runc itself opens /dev/null for writing, so no rule may restrict it."""
    return node.type == "c" and (node.major, node.minor) in _EVERYBODYS


def _container_path(device: Device, node: DeviceNode, field: str) -> str:
    """The node's path in the container: below the given directory, if the request names a directory of nodes."""
    base = clean_container_path(
        device.container_path or device.host_path, f"{field}.container_path"
    )
    inside = node.path.removeprefix(device.host_path.rstrip("/"))
    path = base + inside if inside.startswith("/") and inside != node.path else base
    if path in ("/", "/dev"):
        refuse(f"{field}.container_path", path, "is a directory that every container has")
    # Runtimes silently skip a device where something exists already.
    for place in _MOUNTED:
        if f"{path}/".startswith(f"{place}/"):
            refuse(f"{field}.container_path", path, f"no device can be created at or below {place}")
    for own in _OWN_FILES:
        if path.startswith(f"{own}/"):
            refuse(f"{field}.container_path", path, f"{own} is not a directory")
    return path


def _owner(user: ResolvedUser) -> Spec:
    """The owner of requested devices: the container's user and group, unless root."""
    return {key: own for key, own in (("uid", user.uid), ("gid", user.gid)) if own}


def _access(device: Device, field: str) -> str:
    wanted = device.permissions or "rwm"
    if not set(wanted) <= set("rwm"):
        refuse(f"{field}.permissions", device.permissions, "must consist of the letters r, w and m")
    return "".join(letter for letter in "rwm" if letter in wanted)


def _node(device: DeviceNode, path: str) -> Spec:
    return {
        "path": path,
        "type": device.type,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.file_mode,
        "uid": device.uid,
        "gid": device.gid,
    }
