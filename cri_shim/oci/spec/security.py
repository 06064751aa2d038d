"""Confinement: masked and read-only paths, seccomp, AppArmor, SELinux.

Rules of the file:
- CRI has two generations of profile fields. The SecurityProfile message counts if it is there, else the
  deprecated string. Neither: for seccomp that means unconfined, as CRI documents and its conformance suite checks;
  for AppArmor it means the default profile where the kernel has AppArmor, as Kubernetes documents.
- What would leave a container less confined than it asked for is refused; a default that the node can't offer is
  passed over only where CRI's callers send it unasked (AppArmor).
- Privileged means none of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.checks import (
    absolute_path,
    clean_container_path,
    has_control_characters,
    refuse,
)
from cri_shim.oci.spec.seccomp import resolve_profile
from cri_shim.oci.spec.seccomp_table import CONTAINER, PAUSE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim._pb.cri.v1.api_pb2 import (
        LinuxContainerSecurityContext,
        LinuxSandboxSecurityContext,
        SecurityProfile,
        SELinuxOption,
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
"""What tells of, or reaches, the node's hardware and other processes. powercap: GHSA-7ww5-4wqc-m92c."""
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Choice(Enum):
    """Which profile a request means."""

    UNSET = auto()
    RUNTIME_DEFAULT = auto()
    UNCONFINED = auto()
    LOCALHOST = auto()


@dataclass(frozen=True, slots=True)
class ProfileReference:
    """A profile as requested; `name` is a file (seccomp) or a loaded profile (AppArmor) for LOCALHOST."""

    choice: Choice
    name: str = ""


_CHOICES = {
    api_pb2.SecurityProfile.RuntimeDefault: Choice.RUNTIME_DEFAULT,
    api_pb2.SecurityProfile.Unconfined: Choice.UNCONFINED,
    api_pb2.SecurityProfile.Localhost: Choice.LOCALHOST,
}
_DEPRECATED_CHOICES = {
    "": Choice.UNSET,
    "unconfined": Choice.UNCONFINED,
    "runtime/default": Choice.RUNTIME_DEFAULT,
    "docker/default": Choice.RUNTIME_DEFAULT,
}
_LOCALHOST_PREFIX = "localhost/"


def seccomp_reference(
    context: LinuxContainerSecurityContext | LinuxSandboxSecurityContext,
) -> ProfileReference:
    """Which seccomp profile is asked for; a LOCALHOST name is the absolute path the caller must read.

    Raises InvalidArgumentError.
    """
    if context.HasField("seccomp"):
        reference = _reference(context.seccomp, "seccomp")
    else:
        reference = _deprecated(context.seccomp_profile_path, "seccomp_profile_path")
    if reference.choice is Choice.LOCALHOST:
        absolute_path(reference.name, "seccomp localhost profile")
    return reference


def apparmor_reference(
    context: LinuxContainerSecurityContext | LinuxSandboxSecurityContext,
) -> ProfileReference:
    """Which AppArmor profile is asked for. Raises InvalidArgumentError."""
    if context.HasField("apparmor"):
        reference = _reference(context.apparmor, "apparmor")
        name = reference.name.removeprefix(_LOCALHOST_PREFIX)
        reference = ProfileReference(reference.choice, name)
    else:
        # Only the message for containers ever had the older field.
        path = getattr(context, "apparmor_profile", "")
        reference = _deprecated(path, "apparmor_profile")
    if reference.choice is Choice.LOCALHOST and (
        not reference.name or has_control_characters(reference.name)
    ):
        refuse("apparmor localhost profile", reference.name, "is not the name of a profile")
    return reference


def container_seccomp(
    context: LinuxContainerSecurityContext,
    node: NodeFacts,
    *,
    capabilities: tuple[str, ...],
    localhost: Profile | None,
) -> Spec | None:
    """The container's `linux.seccomp`; None: unconfined.

    Raises InvalidArgumentError when a Localhost profile was not given, UnsupportedError without seccomp.
    """
    if context.privileged:
        return None
    reference = seccomp_reference(context)
    if reference.choice in (Choice.UNSET, Choice.UNCONFINED):
        return None
    if not node.seccomp_available:
        raise UnsupportedError(
            "seccomp: a profile is asked for, but this node's kernel has no seccomp filters"
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
    """The pause container's `linux.seccomp`: the profile for pause programs, also when none is asked for.

    Raises InvalidArgumentError when a Localhost profile was not given.
    """
    reference = seccomp_reference(context)
    if reference.choice is Choice.UNCONFINED or not node.seccomp_available:
        return None
    return _resolved(reference, node, default=PAUSE, capabilities=(), localhost=localhost)


def container_apparmor(context: LinuxContainerSecurityContext, node: NodeFacts) -> str | None:
    """The container's AppArmor profile; None: unconfined.

    Raises InvalidArgumentError for a Localhost profile on a kernel without AppArmor.
    """
    reference = apparmor_reference(context)
    if reference.choice is Choice.LOCALHOST:
        return _loaded(reference, node)
    if context.privileged or reference.choice is Choice.UNCONFINED:
        return None
    return node.apparmor_default_profile


def sandbox_apparmor(context: LinuxSandboxSecurityContext, node: NodeFacts) -> str | None:
    """The pause container's AppArmor profile: only one asked for by name, since it runs our own program.

    Raises InvalidArgumentError for a Localhost profile on a kernel without AppArmor.
    """
    reference = apparmor_reference(context)
    return _loaded(reference, node) if reference.choice is Choice.LOCALHOST else None


def container_paths(
    context: LinuxContainerSecurityContext, node: NodeFacts
) -> tuple[list[str], list[str]]:
    """The masked and the read-only paths.

    On the wire "none" and "not set" are the same, so an empty list means our defaults. kubelet always lists them,
    save for a pod with an unmasked /proc, which Kubernetes allows only inside a user namespace.

    Raises InvalidArgumentError for a path that is not absolute.
    """
    if context.privileged:
        return [], []
    masked = _paths(context.masked_paths, "masked_paths")
    readonly = _paths(context.readonly_paths, "readonly_paths")
    return masked or [*MASKED_PATHS, *node.extra_masked_paths], readonly or [*READONLY_PATHS]


def check_selinux(options: SELinuxOption, node: NodeFacts) -> None:
    """Refuse labels where the node enforces them; elsewhere they mean nothing. Raises UnsupportedError."""
    if node.selinux_enabled and (options.user or options.role or options.type or options.level):
        raise UnsupportedError("selinux_options: SELinux labels are not supported yet")


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
            refuse("seccomp", reference.name, "no such profile on this node")
        profile = localhost
    return resolve_profile(profile, arch=node.arch, kernel=node.kernel, capabilities=capabilities)


def _loaded(reference: ProfileReference, node: NodeFacts) -> str:
    if node.apparmor_default_profile is None:
        refuse("apparmor", reference.name, "this node's kernel has no AppArmor")
    return reference.name


def _reference(profile: SecurityProfile, field: str) -> ProfileReference:
    choice = _CHOICES.get(profile.profile_type)
    if choice is None:
        refuse(f"{field}.profile_type", profile.profile_type, "is not a profile type of CRI")
    if choice is not Choice.LOCALHOST and profile.localhost_ref:
        refuse(
            f"{field}.localhost_ref",
            profile.localhost_ref,
            "is for the profile type Localhost only",
        )
    return ProfileReference(choice, profile.localhost_ref)


def _deprecated(text: str, field: str) -> ProfileReference:
    if text.startswith(_LOCALHOST_PREFIX):
        return ProfileReference(Choice.LOCALHOST, text.removeprefix(_LOCALHOST_PREFIX))
    if text not in _DEPRECATED_CHOICES:
        raise InvalidArgumentError(
            f"{field}: {text!r}: must be runtime/default, unconfined or localhost/NAME"
        )
    return ProfileReference(_DEPRECATED_CHOICES[text])


def _paths(paths: Sequence[str], field: str) -> list[str]:
    return [clean_container_path(path, f"{field}[{index}]") for index, path in enumerate(paths)]
