"""Namespaces: which are made, which joined, which are the node's.

Rules of the file: the pause container makes the pod's namespaces, containers join them through its /proc entry;
the network namespace is joined by its pinned file, which outlives every process. NODE means no entry: the runtime
itself lives in the node's. TARGET exists for the PID namespace of containers only, and a handler with a kernel of
its own can share nothing with the node.

A user namespace is the pod's (POD) or the node's (NODE). It has one mapping of users and one of groups, each from
ID 0 on, and it owns the pod's other namespaces: those of the node can't be shared with it, but for the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.config.model import HandlerKind
from cri_shim.errors import InvalidArgumentError
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
    """Refuse modes that CRI does not define, and combinations that can't be.

    Raises InvalidArgumentError naming the field.
    """
    for field, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode not in (_POD, _NODE):
            refuse(f"namespace_options.{field}", _name(mode), "must be POD or NODE")
    pid_modes = (_POD, _CONTAINER, _NODE) if is_sandbox else (_POD, _CONTAINER, _NODE, _TARGET)
    if options.pid not in pid_modes:
        refuse("namespace_options.pid", _name(options.pid), "is not a mode of this object")
    if options.target_id and options.pid != _TARGET:
        refuse("namespace_options.target_id", options.target_id, "is for the PID mode TARGET only")
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
                    f"namespace_options.{field}: NODE: a pod of the runtime handler {quoted(handler.name)} has a "
                    "kernel of its own and can't share the node's"
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
                f"namespace_options.{field}: NODE: the node's namespace does not belong to the pod's user "
                "namespace, so its files can't be mounted: use userns_options.mode NODE as well, or POD here"
            )


def user_mappings(options: NamespaceOption) -> UserMappings | None:
    """The mappings of the user namespace that the pod is to have; None: the node's.

    Raises InvalidArgumentError for a mode other than POD and NODE, and unless users and groups have one mapping each,
    from ID 0 of the namespace on.
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
        raise InvalidArgumentError(f"{field}: mappings are given, but the mode is NODE")
    return None


def _id_range(mappings: Sequence[IDMapping], field: str) -> IdRange:
    if len(mappings) != 1:
        raise InvalidArgumentError(f"{field}: {len(mappings)} mappings: there must be exactly one")
    [mapping] = mappings
    check_mapping(mapping, field)
    if mapping.container_id != 0:
        refuse(f"{field}.container_id", mapping.container_id, "must be 0: root has to be somebody")
    return IdRange(mapping.host_id, mapping.length)


def build_user_mappings(sandbox: SandboxFacts, handler: HandlerFacts) -> Spec:
    """The parts of `linux` that repeat the mappings of the namespace to join, for runtimes that don't read it."""
    if sandbox.users is None or handler.reads_user_mappings:
        return {}
    return {
        key: [{"containerID": 0, "hostID": ids.host_id, "size": ids.length}]
        for key, ids in (("uidMappings", sandbox.users.uids), ("gidMappings", sandbox.users.gids))
    }


def check_mapping(mapping: IDMapping, field: str) -> None:
    """Raises InvalidArgumentError for a mapping of nobody, or beyond the IDs that there are."""
    if mapping.length == 0:
        refuse(f"{field}.length", 0, "maps nobody")
    for side, first in (("host_id", mapping.host_id), ("container_id", mapping.container_id)):
        in_range(first + mapping.length - 1, f"{field}.{side} + length - 1", low=0, high=MAX_ID)


def check_mapped(user: ResolvedUser, users: UserMappings | None) -> None:
    """Refuse a user or group that the pod's user namespace does not know. Raises InvalidArgumentError."""
    if users is None:
        return
    if user.uid >= users.uids.length:
        refuse(
            user.user_field,
            user.uid,
            f"is not mapped: the pod's user namespace has {users.uids.length} users",
        )
    for gid in user.additional_gids:
        if gid >= users.gids.length:
            refuse(
                user.group_field if gid == user.gid else "supplemental_groups",
                gid,
                f"is not mapped: the pod's user namespace has {users.gids.length} groups",
            )


def build_sandbox_namespaces(
    options: NamespaceOption, *, sandbox: SandboxFacts, node: NodeFacts
) -> list[Spec]:
    """The pause container's namespaces: it makes what the pod does not share with the node.

    The UTS namespace goes with the network: a pod on the node's network bears the node's name.
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
    """A container's namespaces: its own mounts, the pod's network, IPC and host name, PIDs as asked.

    Raises InvalidArgumentError when TARGET names no running container, and for what only the whole pod can choose.
    """
    if sandbox.pause_pid is None:
        raise InvalidArgumentError(f"sandbox {sandbox.id}: its pause container does not run")
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
            refuse("namespace_options.target_id", options.target_id, "is no running container")
        namespaces.append({"type": "pid", "path": f"/proc/{container.target_pid}/ns/pid"})
    if options.ipc == _POD:
        namespaces.append({"type": "ipc", "path": f"{of_pod}/ipc"})
    if options.network == _POD and sandbox.netns_path is not None:
        namespaces += [
            {"type": "uts", "path": f"{of_pod}/uts"},
            {"type": "network", "path": sandbox.netns_path},
        ]
    if node.cgroup_namespace and not privileged:
        namespaces.append({"type": "cgroup"})
    return namespaces


def _check_like_its_pod(options: NamespaceOption, sandbox: SandboxFacts) -> None:
    """Network, IPC and user namespace are the pod's: a container can't leave them for the node's, or for others."""
    for field, mode, pods_is_nodes in (
        ("network", options.network, sandbox.netns_path is None),
        ("ipc", options.ipc, sandbox.host_ipc),
    ):
        if mode == _NODE and not pods_is_nodes:
            raise InvalidArgumentError(
                f"namespace_options.{field}: NODE: the pod {sandbox.id} has its own, which its containers share"
            )
    if options.pid == _NODE and sandbox.users is not None:
        raise InvalidArgumentError(
            f"namespace_options.pid: NODE: the pod {sandbox.id} has a user namespace of its own"
        )
    if options.HasField("userns_options") and user_mappings(options) != sandbox.users:
        raise InvalidArgumentError(
            "namespace_options.userns_options: differs from the pod's, which all its containers share"
        )


def _name(mode: int) -> str:
    """The mode as CRI calls it."""
    names = {number: name for name, number in api_pb2.NamespaceMode.items()}
    return names.get(api_pb2.NamespaceMode.ValueType(mode), str(mode))
