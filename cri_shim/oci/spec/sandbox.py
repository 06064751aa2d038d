"""A pause container's whole spec.

Rules of the file: the pause container makes and holds the pod's namespaces and then only waits, so it gets no
capabilities, a read-only root and hardly any mounts, whatever the pod's containers may do. `net.*` parameters are
not here: `sysctls` says who writes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec import mounts, namespaces, process, resources, security, sysctls
from cri_shim.oci.spec.annotations import build_sandbox_annotations
from cri_shim.oci.spec.capabilities import build_capabilities
from cri_shim.oci.spec.checks import has_control_characters, refuse
from cri_shim.oci.spec.container import OCI_VERSION, build_user
from cri_shim.oci.spec.user import resolve_sandbox_user

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1.api_pb2 import PodSandboxConfig
    from cri_shim.oci.spec.inputs import HandlerFacts, ImageDefaults, NodeFacts, SandboxFacts, Spec
    from cri_shim.oci.spec.seccomp import Profile

PAUSE_OOM_SCORE_ADJ = -998
"""Killing it would take the pod away: it goes last, after kubelet itself (-999)."""
_PAUSE_CPU_SHARES = 2
_HOST_NAME_MAX = 64


def build_sandbox_spec(
    config: PodSandboxConfig,
    *,
    node: NodeFacts,
    handler: HandlerFacts,
    sandbox: SandboxFacts,
    image: ImageDefaults,
    rootfs_path: str,
    cgroups_path: str,
    localhost_seccomp: Profile | None = None,
) -> Spec:
    """The runtime-spec of a pod's pause container.

    The document shares its seccomp part with others: encode it, don't change it.

    Raises InvalidArgumentError for a malformed field, UnsupportedError for one not built; each names the field.
    """
    context = config.linux.security_context
    options = context.namespace_options
    check_sandbox_config(config, handler, node)
    host_ipc = options.ipc == api_pb2.NODE
    seccomp = security.sandbox_seccomp(context, node, localhost=localhost_seccomp)
    parameters = sandbox_sysctls(config, node=node, handler=handler)
    args = [*image.entrypoint, *image.cmd]
    if not args:
        raise InvalidArgumentError(f"the sandbox image {image.name!r} names no command")

    linux: Spec = {
        "namespaces": namespaces.build_sandbox_namespaces(options, sandbox=sandbox, node=node),
        "cgroupsPath": cgroups_path,
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "cpu": {"shares": _PAUSE_CPU_SHARES},
        },
        "maskedPaths": [*security.MASKED_PATHS, *node.extra_masked_paths],
        "readonlyPaths": [*security.READONLY_PATHS],
    }
    if parameters.spec:
        linux["sysctl"] = parameters.spec
    if seccomp is not None:
        linux["seccomp"] = seccomp
    process_spec: Spec = {
        "terminal": False,
        "user": build_user(resolve_sandbox_user(context), node),
        "args": args,
        "env": [f"PATH={process.DEFAULT_PATH}"],
        "cwd": "/",
        "capabilities": build_capabilities(()),
        "noNewPrivileges": True,
        "oomScoreAdj": resources.oom_score_adj(PAUSE_OOM_SCORE_ADJ, node),
    }
    if (apparmor := security.sandbox_apparmor(context, node)) is not None:
        process_spec["apparmorProfile"] = apparmor
    spec: Spec = {
        "ociVersion": OCI_VERSION,
        "process": process_spec,
        "root": {"path": rootfs_path, "readonly": True},
        "mounts": mounts.build_sandbox_mounts(sandbox, host_ipc=host_ipc),
        "annotations": build_sandbox_annotations(sandbox, handler),
        "linux": linux,
    }
    if sandbox.netns_path is not None:
        spec["hostname"] = checked_hostname(sandbox.hostname)
    return spec


def check_sandbox_config(config: PodSandboxConfig, handler: HandlerFacts, node: NodeFacts) -> None:
    """Refuse, before anything is made, what no sandbox could have.

    Raises InvalidArgumentError or UnsupportedError naming the field.
    """
    context = config.linux.security_context
    if config.HasField("windows"):
        raise InvalidArgumentError("windows: this node runs Linux")
    namespaces.check_namespace_options(context.namespace_options, handler, is_sandbox=True)
    security.check_selinux(context.selinux_options, node)
    security.sandbox_apparmor(context, node)


def sandbox_sysctls(
    config: PodSandboxConfig, *, node: NodeFacts, handler: HandlerFacts
) -> sysctls.PodSysctls:
    """The pod's kernel parameters, divided by who writes them; `network` is for the network namespace.

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
    """The host name, if the kernel takes it and no generated file could be forged with it.

    Raises InvalidArgumentError.
    """
    if len(hostname.encode()) > _HOST_NAME_MAX:
        refuse("hostname", hostname, f"is longer than the kernel's {_HOST_NAME_MAX} bytes")
    if has_control_characters(hostname):
        refuse("hostname", hostname, "contains control characters")
    return hostname
