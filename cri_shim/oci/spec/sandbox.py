"""Build a pause container's complete runtime-spec.

Rules: the pause container creates and holds the pod's namespaces, and then only waits. So it gets no capabilities, a
read-only root and hardly any mounts, whatever the pod's containers may do. `sysctls` explains who sets `net.*`
parameters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec import (
    apparmor,
    mounts,
    namespaces,
    process,
    resources,
    security,
    selinux,
    sysctls,
)
from cri_shim.oci.spec.annotations import build_sandbox_annotations, check_sandbox_annotations
from cri_shim.oci.spec.capabilities import build_capabilities
from cri_shim.oci.spec.checks import refuse
from cri_shim.oci.spec.container import OCI_VERSION, build_user
from cri_shim.oci.spec.user import resolve_sandbox_user
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1.api_pb2 import (
        LinuxContainerResources,
        LinuxSandboxSecurityContext,
        PodSandboxConfig,
    )
    from cri_shim.oci.spec.inputs import (
        HandlerFacts,
        ImageDefaults,
        NodeFacts,
        ResolvedUser,
        SandboxFacts,
        Spec,
    )
    from cri_shim.oci.spec.seccomp import Profile
    from cri_shim.oci.spec.sysctls import PodSysctls

PAUSE_OOM_SCORE_ADJ = -998
"""Its death would end the pod, so it should be the OOM killer's last choice after the kubelet itself (-999)."""
_HOST_NAME_MAX = 64
"""HOST_NAME_MAX, the limit of sethostname(2) in bytes."""
_NOT_IN_A_HOST_NAME = re.compile(r"[\s\x00-\x1f\x7f-\x9f#]")


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """What a pod's request says, parsed and checked once; the steps that make the pod take it from here."""

    sysctls: PodSysctls
    """The pod's kernel parameters, divided by who writes them."""
    user: ResolvedUser
    """Whom the pause process runs as."""


def plan_sandbox(
    config: PodSandboxConfig, *, handler: HandlerFacts, node: NodeFacts
) -> SandboxPlan:
    """Check all that can be refused before anything is made.

    Raises InvalidArgumentError for a malformed field, UnsupportedError for an unsupported one; each names the field.
    """
    check_sandbox_config(config, handler, node)
    return SandboxPlan(
        sysctls=sandbox_sysctls(config, node=node, handler=handler),
        user=resolve_sandbox_user(config.linux.security_context),
    )


def build_sandbox_spec(
    config: PodSandboxConfig,
    plan: SandboxPlan,
    *,
    node: NodeFacts,
    handler: HandlerFacts,
    sandbox: SandboxFacts,
    image: ImageDefaults,
    rootfs_path: str,
    cgroups_path: str,
    localhost_seccomp: Profile | None = None,
) -> Spec:
    """The runtime-spec of a pod's pause container, whose request `plan_sandbox` has checked.

    Its seccomp part is shared between documents: encode the result, don't modify it.

    Raises InvalidArgumentError for what only the image shows, and for a profile that the node no longer has.
    """
    context = config.linux.security_context
    options = context.namespace_options
    host_ipc = options.ipc == api_pb2.NODE
    seccomp = security.sandbox_seccomp(context, node, localhost=localhost_seccomp)
    args = [*image.entrypoint, *image.cmd]
    if not args:
        raise InvalidArgumentError(f"the sandbox image {quoted(image.name)} has no command")

    linux: Spec = {
        "namespaces": namespaces.build_sandbox_namespaces(options, sandbox=sandbox, node=node),
        "cgroupsPath": cgroups_path,
        **namespaces.build_user_mappings(sandbox, handler),
        # No small CPU weight, although the pause process computes nothing: the runtime works in its cgroup when it
        # creates and ends it, which would take many seconds beside busy containers.
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "maskedPaths": [*security.MASKED_PATHS, *node.extra_masked_paths],
        "readonlyPaths": [*security.READONLY_PATHS],
    }
    if plan.sysctls.spec:
        linux["sysctl"] = plan.sysctls.spec
    if seccomp is not None:
        linux["seccomp"] = seccomp
    if sandbox.labels.files:
        linux["mountLabel"] = sandbox.labels.files
    spec: Spec = {
        "ociVersion": OCI_VERSION,
        "process": _build_process(plan.user, args, context, node, sandbox),
        "root": {"path": rootfs_path, "readonly": True},
        "mounts": mounts.build_sandbox_mounts(sandbox, host_ipc=host_ipc),
        "annotations": build_sandbox_annotations(sandbox, handler),
        "linux": linux,
    }
    if sandbox.netns_path is not None:
        spec["hostname"] = sandbox.hostname
    return spec


def _build_process(
    user: ResolvedUser,
    args: list[str],
    context: LinuxSandboxSecurityContext,
    node: NodeFacts,
    sandbox: SandboxFacts,
) -> Spec:
    spec: Spec = {
        "terminal": False,
        "user": build_user(user, node),
        "args": args,
        "env": [f"PATH={process.DEFAULT_PATH}"],
        "cwd": "/",
        "capabilities": build_capabilities(()),
        "noNewPrivileges": True,
        "oomScoreAdj": resources.oom_score_adj(PAUSE_OOM_SCORE_ADJ, node),
    }
    if (profile := apparmor.sandbox_apparmor(context, node)) is not None:
        spec["apparmorProfile"] = profile
    if sandbox.labels.process:
        spec["selinuxLabel"] = sandbox.labels.process
    return spec


def check_sandbox_config(config: PodSandboxConfig, handler: HandlerFacts, node: NodeFacts) -> None:
    """Check, before anything is created, for what no sandbox can have.

    Raises InvalidArgumentError or UnsupportedError with the field.
    """
    context = config.linux.security_context
    if config.HasField("windows"):
        raise InvalidArgumentError("windows: this node runs Linux")
    namespaces.check_namespace_options(context.namespace_options, handler, is_sandbox=True)
    namespaces.check_mapped(
        resolve_sandbox_user(context), namespaces.user_mappings(context.namespace_options)
    )
    if context.supplemental_groups_policy not in (api_pb2.Merge, api_pb2.Strict):
        refuse(
            "supplemental_groups_policy",
            context.supplemental_groups_policy,
            "is not a policy of CRI",
        )
    selinux.check_options(context.selinux_options)
    apparmor.sandbox_apparmor(context, node)
    check_sandbox_annotations(config.annotations, handler, node)
    check_sizing(overhead=config.linux.overhead, size=config.linux.resources, node=node)


def check_sizing(
    *, overhead: LinuxContainerResources, size: LinuxContainerResources, node: NodeFacts
) -> None:
    """Check a pod's resources. They size a pod with its own kernel; for others the kubelet limits the pod's cgroup.

    Raises InvalidArgumentError with the field.
    """
    for field, given in (("overhead", overhead), ("resources", size)):
        try:
            resources.build_resources(given, node)
            resources.oom_score_adj(given.oom_score_adj, node)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"linux.{field}.{error}") from error


def sandbox_sysctls(
    config: PodSandboxConfig, *, node: NodeFacts, handler: HandlerFacts
) -> sysctls.PodSysctls:
    """The pod's kernel parameters, grouped by who sets them; `network` is for the network namespace.

    Raises InvalidArgumentError.
    """
    options = config.linux.security_context.namespace_options
    return sysctls.pod_sysctls(
        config.linux.sysctls,
        defaults=node.default_sysctls,
        kind=handler.kind,
        host_network=options.network == api_pb2.NODE,
        host_ipc=options.ipc == api_pb2.NODE,
    )


def checked_hostname(hostname: str) -> str:
    """The requested host name, if the kernel accepts it and `/etc/hostname` and `/etc/hosts` can contain it.

    The kernel accepts up to 64 bytes of any kind, and many names in use are no RFC 1123 labels, such as `a_b`. In the
    files, white space and `#` end a name. Raises InvalidArgumentError.
    """
    if len(hostname) > _HOST_NAME_MAX or len(hostname.encode()) > _HOST_NAME_MAX:
        refuse("config.hostname", hostname, f"exceeds the kernel's limit of {_HOST_NAME_MAX} bytes")
    if _NOT_IN_A_HOST_NAME.search(hostname):
        refuse("config.hostname", hostname, "contains white space, a control character or '#'")
    return hostname
