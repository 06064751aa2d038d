"""Namespaces: which are made, which joined, which are the node's.

Rules of the file: the pause container makes the pod's namespaces, containers join them through its /proc entry;
the network namespace is joined by its pinned file, which outlives every process. NODE means no entry: the runtime
itself lives in the node's. TARGET exists for the PID namespace of containers only, and a handler with a kernel of
its own can share nothing with the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.checks import refuse
from cri_shim.oci.spec.inputs import HandlerKind

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1.api_pb2 import NamespaceOption
    from cri_shim.oci.spec.inputs import ContainerFacts, HandlerFacts, NodeFacts, SandboxFacts, Spec

_POD, _CONTAINER, _NODE, _TARGET = (
    api_pb2.POD,
    api_pb2.CONTAINER,
    api_pb2.NODE,
    api_pb2.TARGET,
)


def check_namespace_options(
    options: NamespaceOption, handler: HandlerFacts, *, is_sandbox: bool
) -> None:
    """Refuse modes that CRI does not define, and what this server does not build yet.

    Raises InvalidArgumentError or UnsupportedError naming the field.
    """
    for field, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode not in (_POD, _NODE):
            refuse(f"namespace_options.{field}", _name(mode), "must be POD or NODE")
    pid_modes = (_POD, _CONTAINER, _NODE) if is_sandbox else (_POD, _CONTAINER, _NODE, _TARGET)
    if options.pid not in pid_modes:
        refuse("namespace_options.pid", _name(options.pid), "is not a mode of this object")
    _check_user_namespace(options)
    if handler.kind is HandlerKind.VM:
        for field, mode in (
            ("network", options.network),
            ("pid", options.pid),
            ("ipc", options.ipc),
        ):
            if mode == _NODE:
                raise InvalidArgumentError(
                    f"namespace_options.{field}: NODE: a pod of the runtime handler {handler.name!r} has a "
                    "kernel of its own and can't share the node's"
                )


def _check_user_namespace(options: NamespaceOption) -> None:
    if not options.HasField("userns_options"):
        return
    wanted = options.userns_options
    if wanted.mode == _POD:
        raise UnsupportedError(
            "namespace_options.userns_options: user namespaces are not supported yet"
        )
    if wanted.mode != _NODE:
        refuse("namespace_options.userns_options.mode", _name(wanted.mode), "must be POD or NODE")
    if wanted.uids or wanted.gids:
        raise InvalidArgumentError(
            "namespace_options.userns_options: mappings are given, but the mode is NODE"
        )


def build_sandbox_namespaces(
    options: NamespaceOption, *, sandbox: SandboxFacts, node: NodeFacts
) -> list[Spec]:
    """The pause container's namespaces: it makes what the pod does not share with the node.

    The UTS namespace goes with the network: a pod on the node's network bears the node's name.
    """
    namespaces: list[Spec] = [{"type": "mount"}]
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

    Raises InvalidArgumentError when TARGET names no running container.
    """
    if sandbox.pause_pid is None:
        raise InvalidArgumentError(f"sandbox {sandbox.id}: its pause container does not run")
    of_pod = f"/proc/{sandbox.pause_pid}/ns"
    namespaces: list[Spec] = [{"type": "mount"}]
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


def _name(mode: int) -> str:
    """The mode as CRI calls it."""
    names = {number: name for name, number in api_pb2.NamespaceMode.items()}
    return names.get(api_pb2.NamespaceMode.ValueType(mode), str(mode))
