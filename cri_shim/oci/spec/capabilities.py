"""The Linux capabilities that a container gets, and in which sets.

Rules of the file: names are compared without `CAP_` and in upper case. The inheritable set stays empty unless
ambient capabilities are asked for, which the kernel grants only through it (CVE-2022-24769 and its kin). What is
asked for by name and can't be had is refused; `ALL`, the defaults and `privileged` mean what this node can give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.config.values import CAPABILITIES
from cri_shim.errors import PermissionRefusedError
from cri_shim.oci.spec.checks import refuse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim._pb.cri.v1.api_pb2 import LinuxContainerSecurityContext
    from cri_shim.oci.spec.inputs import NodeFacts, Spec

_NUMBER = {name: number for number, name in enumerate(CAPABILITIES)}


def container_capabilities(
    context: LinuxContainerSecurityContext, node: NodeFacts
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The bounding and the ambient capabilities of a container, in kernel order, without `CAP_`.

    `ALL` counts before single names, and dropping before adding: dropping ALL and adding one leaves that one.

    Raises InvalidArgumentError for an unknown name, PermissionRefusedError for one this process does not hold.
    """
    available = set(node.capabilities)
    wanted = context.capabilities
    add_all, add = _parse(wanted.add_capabilities, "add_capabilities")
    drop_all, drop = _parse(wanted.drop_capabilities, "drop_capabilities")
    ambient_all, ambient = _parse(wanted.add_ambient_capabilities, "add_ambient_capabilities")
    if context.privileged:
        return _ordered(available), ()
    if missing := (add | ambient) - available - drop:
        names = ", ".join(_ordered(missing))
        raise PermissionRefusedError(
            f"capabilities: {names}: this server does not hold them and can't hand them out; "
            "run it with them in its bounding set"
        )
    bounding = available if add_all else available & set(node.default_capabilities)
    if drop_all:
        bounding = set()
    ambient = (available if ambient_all else ambient) - drop
    bounding = (bounding | add | ambient) - drop
    return _ordered(bounding), _ordered(ambient)


def build_capabilities(bounding: Iterable[str], ambient: Iterable[str] = ()) -> Spec:
    """The spec's capabilities object."""
    held = [f"CAP_{name}" for name in bounding]
    capabilities: Spec = {"bounding": held, "effective": [*held], "permitted": [*held]}
    if raised := [f"CAP_{name}" for name in ambient]:
        capabilities["inheritable"] = raised
        capabilities["ambient"] = [*raised]
    return capabilities


def _parse(names: Iterable[str], field: str) -> tuple[bool, set[str]]:
    """Whether ALL is among the names, and the other names."""
    everything = False
    parsed = set()
    for given in names:
        name = given.upper().removeprefix("CAP_")
        if name == "ALL":
            everything = True
        elif name in _NUMBER:
            parsed.add(name)
        else:
            refuse(field, given, "is not a capability of Linux")
    return everything, parsed


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=_NUMBER.__getitem__))
