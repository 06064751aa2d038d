"""Confinement: masked and read-only paths, seccomp.

Rules:
- Without a requested seccomp profile a container is unconfined, as CRI documents and its conformance suite checks.
- A request is refused if the container would be less confined than requested.
- A privileged container has no confinement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import UnsupportedError
from cri_shim.oci.spec.checks import absolute_path, clean_container_path, refuse
from cri_shim.oci.spec.profiles import (
    Choice,
    ProfileReference,
    deprecated_reference,
    profile_reference,
)
from cri_shim.oci.spec.seccomp import resolve_profile
from cri_shim.oci.spec.seccomp_table import CONTAINER, PAUSE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim._pb.cri.v1.api_pb2 import (
        LinuxContainerSecurityContext,
        LinuxSandboxSecurityContext,
    )
    from cri_shim.oci.spec.inputs import NodeFacts, Spec
    from cri_shim.oci.spec.seccomp import Profile

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""Files about the node's hardware and other processes, or with access to them. powercap: GHSA-7ww5-4wqc-m92c."""
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def seccomp_reference(
    context: LinuxContainerSecurityContext | LinuxSandboxSecurityContext,
) -> ProfileReference:
    """The requested seccomp profile. For LOCALHOST, its name is the absolute path that the caller must read.

    Raises InvalidArgumentError.
    """
    if context.HasField("seccomp"):
        reference = profile_reference(context.seccomp, "seccomp")
    else:
        reference = deprecated_reference(context.seccomp_profile_path, "seccomp_profile_path")
    if reference.choice is Choice.LOCALHOST:
        absolute_path(reference.name, reference.said_in)
    return reference


def container_seccomp(
    context: LinuxContainerSecurityContext,
    node: NodeFacts,
    *,
    capabilities: tuple[str, ...],
    localhost: Profile | None,
) -> Spec | None:
    """The container's `linux.seccomp`; None for unconfined.

    Raises InvalidArgumentError if a Localhost profile is missing, UnsupportedError on a kernel without seccomp.
    """
    if context.privileged:
        return None
    reference = seccomp_reference(context)
    if reference.choice in (Choice.UNSET, Choice.UNCONFINED):
        return None
    if not node.seccomp_available:
        raise UnsupportedError(
            f"{reference.said_in}: a profile is requested, but this node's kernel has no seccomp filters"
        )
    return _resolved(
        reference,
        node,
        default=node.default_seccomp or CONTAINER,
        capabilities=capabilities,
        localhost=localhost,
    )


def sandbox_seccomp(
    context: LinuxSandboxSecurityContext, node: NodeFacts, *, localhost: Profile | None
) -> Spec | None:
    """The pause container's `linux.seccomp`: the profile for pause programs, unless the request says otherwise.

    Raises InvalidArgumentError if a Localhost profile is missing.
    """
    reference = seccomp_reference(context)
    # The pause program is the operator's: a kernel without seccomp is no reason to refuse the pod.
    if reference.choice is Choice.UNCONFINED or not node.seccomp_available:
        return None
    return _resolved(reference, node, default=PAUSE, capabilities=(), localhost=localhost)


def container_paths(
    context: LinuxContainerSecurityContext, node: NodeFacts, *, own_users: bool
) -> tuple[list[str], list[str]]:
    """The masked and the read-only paths.

    Protobuf can't distinguish "none" from "not set", so an empty list means our defaults. The kubelet always sends both
    lists, except for an unmasked /proc, which Kubernetes allows only in a pod with its own user namespace. There, two
    empty lists mean none.

    Raises InvalidArgumentError for a path that is not absolute.
    """
    if context.privileged:
        return [], []
    masked = _paths(context.masked_paths, "masked_paths")
    readonly = _paths(context.readonly_paths, "readonly_paths")
    if own_users and not masked and not readonly:
        return [], []
    return masked or [*MASKED_PATHS, *node.extra_masked_paths], readonly or [*READONLY_PATHS]


def _resolved(
    reference: ProfileReference,
    node: NodeFacts,
    *,
    default: Profile,
    capabilities: tuple[str, ...],
    localhost: Profile | None,
) -> Spec:
    profile = default
    if reference.choice is Choice.LOCALHOST:
        if localhost is None:
            refuse(reference.said_in, reference.name, "there is no such profile on this node")
        profile = localhost
    return resolve_profile(profile, arch=node.arch, kernel=node.kernel, capabilities=capabilities)


def _paths(paths: Sequence[str], field: str) -> list[str]:
    return [clean_container_path(path, f"{field}[{index}]") for index, path in enumerate(paths)]
