"""Namespaces: which ones a container creates, joins, or shares with the node.

Rules: the pause container creates the pod's namespaces, and containers join them through its /proc entry. The network
namespace is joined by its pinned file, which outlives every process. NODE means no entry, since the runtime itself runs
in the node's namespaces. TARGET exists only for a container's PID namespace. A handler with its own kernel can share
nothing with the node.

A user namespace is the pod's (POD) or the node's (NODE). It has one mapping of users and one of groups, each from ID 0
on, and owns the pod's other namespaces. With it, the pod can't share the node's namespaces, except for the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.config.model import HandlerKind
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.checks import in_range, refuse
from cri_shim.oci.spec.inputs import IdRange, UserMappings
from cri_shim.oci.spec.user import MAX_ID
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim._pb.cri.v1.api_pb2 import IDMapping, NamespaceOption
    from cri_shim.oci.spec.inputs import (
        ContainerFacts,
        HandlerFacts,
        NodeFacts,
        ResolvedUser,
        SandboxFacts,
        Spec,
    )

_POD, _CONTAINER, _NODE, _TARGET = (
    api_pb2.POD,
    api_pb2.CONTAINER,
    api_pb2.NODE,
    api_pb2.TARGET,
)


def check_namespace_options(
    options: NamespaceOption, handler: HandlerFacts, *, is_sandbox: bool
) -> None:
    """Check for modes that CRI does not define, and for impossible combinations.

    Raises InvalidArgumentError with the field.
    """
    for field, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode not in (_POD, _NODE):
            refuse(f"namespace_options.{field}", _name(mode), "must be POD or NODE")
    pid_modes = (_POD, _CONTAINER, _NODE) if is_sandbox else (_POD, _CONTAINER, _NODE, _TARGET)
    if options.pid not in pid_modes:
        refuse("namespace_options.pid", _name(options.pid), "is not a mode for this object")
    if options.target_id and options.pid != _TARGET:
        refuse("namespace_options.target_id", options.target_id, "requires the PID mode TARGET")
    if user_mappings(options) is not None:
        _check_user_namespace(options, handler)
    if handler.kind is HandlerKind.VM:
        for field, mode in (
            ("network", options.network),
            ("pid", options.pid),
            ("ipc", options.ipc),
        ):
            if mode == _NODE:
                raise InvalidArgumentError(
                    f"namespace_options.{field}: NODE: pods of the runtime handler {quoted(handler.name)} have their "
                    "own kernel and can't share the node's namespaces"
                )
        if options.pid == _TARGET:
            raise UnsupportedError(
                f"namespace_options.pid: TARGET: the runtime handler {quoted(handler.name)} can't join the processes "
                "of one other container; POD shares those of the whole pod"
            )


def _check_user_namespace(options: NamespaceOption, handler: HandlerFacts) -> None:
    if not handler.user_namespaces:
        raise InvalidArgumentError(
            f"namespace_options.userns_options: the runtime handler {quoted(handler.name)}, the kernel or the file "
            "system of `root` does not support ID-mapped mounts (runc 1.2 or newer, Linux 5.19), which user "
            "namespaces need"
        )
    for field, mode in (("pid", options.pid), ("ipc", options.ipc)):
        if mode == _NODE:
            raise InvalidArgumentError(
                f"namespace_options.{field}: NODE: the node's namespace does not belong to the pod's user namespace, "
                "so its file system can't be mounted: use POD, or userns_options.mode NODE"
            )


def user_mappings(options: NamespaceOption) -> UserMappings | None:
    """The mappings of the pod's own user namespace; None for the node's.

    Raises InvalidArgumentError for a mode other than POD and NODE, and unless users and groups have one mapping each,
    from ID 0 on.
    """
    if not options.HasField("userns_options"):
        return None
    field, wanted = "namespace_options.userns_options", options.userns_options
    if wanted.mode == _POD:
        return UserMappings(
            uids=_id_range(wanted.uids, f"{field}.uids"),
            gids=_id_range(wanted.gids, f"{field}.gids"),
        )
    if wanted.mode != _NODE:
        refuse(f"{field}.mode", _name(wanted.mode), "must be POD or NODE")
    if wanted.uids or wanted.gids:
        raise InvalidArgumentError(f"{field}: mappings are not allowed with the mode NODE")
    return None


def _id_range(mappings: Sequence[IDMapping], field: str) -> IdRange:
    if len(mappings) != 1:
        raise InvalidArgumentError(f"{field}: {len(mappings)} mappings; exactly one is required")
    [mapping] = mappings
    check_mapping(mapping, field)
    if mapping.container_id != 0:
        refuse(f"{field}.container_id", mapping.container_id, "must be 0, so that root is mapped")
    return IdRange(mapping.host_id, mapping.length)


def build_user_mappings(sandbox: SandboxFacts, handler: HandlerFacts) -> Spec:
    """The `linux` members that repeat a joined user namespace's mappings, for runtimes that don't read them there."""
    if sandbox.users is None or handler.reads_user_mappings:
        return {}
    return {
        key: [{"containerID": 0, "hostID": ids.host_id, "size": ids.length}]
        for key, ids in (("uidMappings", sandbox.users.uids), ("gidMappings", sandbox.users.gids))
    }


def check_mapping(mapping: IDMapping, field: str) -> None:
    """Raises InvalidArgumentError for an empty mapping, or one that exceeds the range of IDs."""
    if mapping.length == 0:
        refuse(f"{field}.length", 0, "maps no ID")
    for side, first in (("host_id", mapping.host_id), ("container_id", mapping.container_id)):
        in_range(first + mapping.length - 1, f"{field}.{side} + length - 1", low=0, high=MAX_ID)


def check_mapped(user: ResolvedUser, users: UserMappings | None) -> None:
    """Raises InvalidArgumentError for a user or group that the pod's user namespace does not map."""
    if users is None:
        return
    if user.uid >= users.uids.length:
        refuse(
            user.user_field,
            user.uid,
            f"is not mapped: the pod's user namespace has {users.uids.length} user IDs",
        )
    for gid in user.additional_gids:
        if gid >= users.gids.length:
            refuse(
                user.group_field if gid == user.gid else "supplemental_groups",
                gid,
                f"is not mapped: the pod's user namespace has {users.gids.length} group IDs",
            )


def build_sandbox_namespaces(
    options: NamespaceOption, *, sandbox: SandboxFacts, node: NodeFacts
) -> list[Spec]:
    """The pause container's namespaces: it creates those that the pod does not share with the node.

    The UTS namespace follows the network: a pod on the node's network has the node's host name.
    """
    namespaces: list[Spec] = [{"type": "mount"}]
    if sandbox.userns_path is not None:
        namespaces.append({"type": "user", "path": sandbox.userns_path})
    if options.pid != _NODE:
        namespaces.append({"type": "pid"})
    if options.ipc != _NODE:
        namespaces.append({"type": "ipc"})
    if sandbox.netns_path is not None:
        namespaces += [{"type": "uts"}, {"type": "network", "path": sandbox.netns_path}]
    if node.cgroup_namespace:
        namespaces.append({"type": "cgroup"})
    return namespaces


def build_container_namespaces(
    options: NamespaceOption,
    *,
    sandbox: SandboxFacts,
    container: ContainerFacts,
    node: NodeFacts,
    privileged: bool,
) -> list[Spec]:
    """A container's namespaces: its own mounts, the pod's network, IPC and host name, and PIDs as requested.

    Raises InvalidArgumentError when TARGET names no running container, and for choices that only the pod has.
    """
    if sandbox.pause_pid is None:
        raise InvalidArgumentError(f"sandbox {sandbox.id}: its pause container is not running")
    _check_like_its_pod(options, sandbox)
    of_pod = f"/proc/{sandbox.pause_pid}/ns"
    namespaces: list[Spec] = [{"type": "mount"}]
    if sandbox.users is not None:
        namespaces.append({"type": "user", "path": f"{of_pod}/user"})
    if options.pid == _POD:
        namespaces.append({"type": "pid", "path": f"{of_pod}/pid"})
    elif options.pid == _CONTAINER:
        namespaces.append({"type": "pid"})
    elif options.pid == _TARGET:
        if container.target_pid is None:
            refuse("namespace_options.target_id", options.target_id, "is not a running container")
        namespaces.append({"type": "pid", "path": f"/proc/{container.target_pid}/ns/pid"})
    if options.ipc == _POD:
        namespaces.append({"type": "ipc", "path": f"{of_pod}/ipc"})
    if options.network == _POD and sandbox.netns_path is not None:
        namespaces += [
            {"type": "uts", "path": f"{of_pod}/uts"},
            {"type": "network", "path": sandbox.netns_path},
        ]
    # A privileged container sees the node's whole cgroup tree, as with other runtimes.
    if node.cgroup_namespace and not privileged:
        namespaces.append({"type": "cgroup"})
    return namespaces


def _check_like_its_pod(options: NamespaceOption, sandbox: SandboxFacts) -> None:
    """Check that the container keeps the pod's network, IPC and user namespaces."""
    for field, mode, pods_is_nodes in (
        ("network", options.network, sandbox.netns_path is None),
        ("ipc", options.ipc, sandbox.host_ipc),
    ):
        if mode == _NODE and not pods_is_nodes:
            raise InvalidArgumentError(
                f"namespace_options.{field}: NODE: the sandbox {sandbox.id} has its own, which its containers share"
            )
    if options.pid == _NODE and sandbox.users is not None:
        raise InvalidArgumentError(
            f"namespace_options.pid: NODE: the sandbox {sandbox.id} has its own user namespace"
        )
    if options.HasField("userns_options") and user_mappings(options) != sandbox.users:
        raise InvalidArgumentError(
            "namespace_options.userns_options: differs from the sandbox's, which all its containers share"
        )


def _name(mode: int) -> str:
    """The mode's name in CRI."""
    names = {number: name for name, number in api_pb2.NamespaceMode.items()}
    return names.get(api_pb2.NamespaceMode.ValueType(mode), str(mode))
