"""The Linux capabilities of a container, and their sets.

Rules: names are compared in upper case and without `CAP_`. The inheritable set stays empty (CVE-2022-24769) unless
ambient capabilities are requested, which the kernel grants only through it. A capability that is requested by name but
not available is refused. `ALL`, the defaults and `privileged` mean those that are available.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.config.model import HandlerKind
from cri_shim.config.values import CAPABILITIES
from cri_shim.errors import PermissionRefusedError
from cri_shim.oci.spec.checks import refuse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim._pb.cri.v1.api_pb2 import LinuxContainerSecurityContext
    from cri_shim.oci.spec.inputs import HandlerFacts, NodeFacts, Spec

_NUMBER = {name: number for number, name in enumerate(CAPABILITIES)}
_UNKNOWN_TO_GUESTS = {"PERFMON", "BPF", "CHECKPOINT_RESTORE"}
"""Newer than Linux 5.7: gVisor and agents in guests refuse a container for a name that they don't know."""


def container_capabilities(
    context: LinuxContainerSecurityContext, node: NodeFacts, handler: HandlerFacts
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The bounding and the ambient capabilities of a container, in the kernel's order, without `CAP_`.

    `ALL` applies before single names. Dropping ALL and adding one leaves that one.

    Raises InvalidArgumentError for an unknown name, PermissionRefusedError for one that this process lacks.
    """
    available = set(node.capabilities)
    if handler.kind is HandlerKind.VM:
        available -= _UNKNOWN_TO_GUESTS
    wanted = context.capabilities
    add_all, add = _parse(wanted.add_capabilities, "add_capabilities")
    drop_all, drop = _parse(wanted.drop_capabilities, "drop_capabilities")
    ambient_all, ambient = _parse(wanted.add_ambient_capabilities, "add_ambient_capabilities")
    if context.privileged:
        return _ordered(available), ()
    if missing := (add | ambient) - available - drop:
        names = ", ".join(_ordered(missing))
        raise PermissionRefusedError(
            f"capabilities: {names}: this server does not have them, so it can't grant them; "
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
            refuse(field, given, "is not a Linux capability")
    return everything, parsed


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=_NUMBER.__getitem__))
