"""AppArmor: the profile of a process, and the text of our own profile.

Rules:
- Without a requested profile the default applies, as Kubernetes documents. Privileged means none, unless a profile is
  requested by name.
- On a kernel without AppArmor the default means nothing, since CRI's callers send it unasked; a profile requested by
  name is refused. With AppArmor, the request is refused unless the profile is loaded.
- Both generations of the field may be set, as the kubelet does. The newer one counts, whatever the other says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import UnavailableError
from cri_shim.oci.spec.checks import has_control_characters, refuse
from cri_shim.oci.spec.profiles import (
    Choice,
    ProfileReference,
    deprecated_reference,
    profile_reference,
)
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1.api_pb2 import (
        LinuxContainerSecurityContext,
        LinuxSandboxSecurityContext,
    )
    from cri_shim.oci.spec.inputs import NodeFacts

DEFAULT_PROFILE = "cri-shim-default"
"""Our own profile, which the daemon writes and loads."""
UNCONFINED = "unconfined"
"""The value of the default profile that stands for no profile."""

_MONITORS_AND_RUNTIMES = "unconfined,conmon,runc,crun"
"""The processes that may signal a container: the daemon, and runtimes that a distribution confines under their own
name."""


def default_profile_text() -> str:
    """Our profile in AppArmor's language (apparmor.d(5)), limited to what parsers support since version 2.13.

    It repeats what read-only and masked paths do, which a process can lose with its mount namespace. It denies writing
    the node's settings, reading its memory and firmware, mounting, and tracing or signalling any process without the
    same profile. Processes with the profile stacked on another count as the same: crun stacks it under no_new_privs if
    crun itself has a profile.
    """
    name = DEFAULT_PROFILE
    return f"""# Written by cri-shim at each start: changes are lost. One of your own: see security.apparmor_profile.
profile {name} flags=(attach_disconnected,mediate_deleted) {{
  capability,
  dbus,
  file,
  network,
  umount,
  unix,

  deny mount,

  signal (receive) peer={{{_MONITORS_AND_RUNTIMES}}},
  signal (send,receive) peer={name},
  signal (send,receive) peer={name}//&*,
  ptrace (trace,read,tracedby,readby) peer={name},
  ptrace (trace,read,tracedby,readby) peer={name}//&*,

  # Settings and events of the node: all but processes (/proc/NUMBER) and /proc/sys, where a pod's own is net.
  deny /proc/* wkl,
  deny /proc/{{[^0-9s],s[^y],sy[^s],sys[^/]}}*/** wkl,
  deny /proc/sys/* wkl,
  deny /proc/sys/{{[^n],n[^e],ne[^t],net[^/]}}*/** wkl,
  deny /proc/{{kcore,kmem,kpagecgroup,kpagecount,kpageflags,mem,sysrq-trigger}} rwklx,

  # The node's devices and file systems. Cgroups are the one part of /sys that containers may own.
  deny /sys/{{[^f],f[^s],fs[^/]}}*/** wklx,
  deny /sys/fs/{{[^c],c[^g],cg[^r]}}** wklx,
  deny /sys/firmware/** r,
  deny /sys/kernel/{{debug,security,tracing}}/** r,
  deny /sys/devices/virtual/powercap/** r,
}}
"""


def apparmor_reference(
    context: LinuxContainerSecurityContext | LinuxSandboxSecurityContext,
) -> ProfileReference:
    """The requested AppArmor profile. Raises InvalidArgumentError."""
    if context.HasField("apparmor"):
        reference = profile_reference(context.apparmor, "apparmor")
    else:
        # Only the containers' message has the deprecated field.
        older = getattr(context, "apparmor_profile", "")
        reference = deprecated_reference(older, "apparmor_profile")
    if reference.choice is Choice.LOCALHOST and (
        not reference.name or has_control_characters(reference.name)
    ):
        refuse(reference.said_in, reference.name, "is not a profile name")
    return reference


def container_apparmor(context: LinuxContainerSecurityContext, node: NodeFacts) -> str | None:
    """The container's AppArmor profile; None for unconfined.

    Raises InvalidArgumentError for a profile that is not loaded or a kernel without AppArmor, UnavailableError if the
    default could not be loaded.
    """
    return _chosen(apparmor_reference(context), node, privileged=context.privileged)


def sandbox_apparmor(context: LinuxSandboxSecurityContext, node: NodeFacts) -> str | None:
    """The pause container's AppArmor profile; None for unconfined. Raises as for a container."""
    return _chosen(apparmor_reference(context), node, privileged=context.privileged)


def _chosen(reference: ProfileReference, node: NodeFacts, *, privileged: bool) -> str | None:
    loaded = node.apparmor_profiles
    if reference.choice is Choice.LOCALHOST:
        if loaded is None:
            refuse(reference.said_in, reference.name, "this node's kernel has no AppArmor")
        if reference.name not in loaded:
            refuse(
                reference.said_in,
                reference.name,
                "no profile with this name is loaded on this node: load it with apparmor_parser",
            )
        return reference.name
    if loaded is None or privileged or reference.choice is Choice.UNCONFINED:
        return None
    default = node.apparmor_default_profile
    if default == UNCONFINED:
        return None
    if default in loaded:
        return default
    if reference.choice is Choice.RUNTIME_DEFAULT:
        raise UnavailableError(
            f"{reference.said_in}: RuntimeDefault is requested, but the profile {quoted(default)} is not loaded on "
            "this node: install apparmor_parser, or load the profile by hand"
        )
    return None
