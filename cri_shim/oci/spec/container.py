"""Build a container's complete runtime-spec, and encode it.

Rules: one step per part, in the order of the document. A CRI field that this server doesn't support is refused here or
in the module of its part. No field is ignored silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec import (
    apparmor,
    capabilities,
    cdi_edits,
    devices,
    hooks,
    mounts,
    namespaces,
    process,
    resources,
    security,
    selinux,
)
from cri_shim.oci.spec.annotations import build_container_annotations
from cri_shim.oci.spec.user import check_ids

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig
    from cri_shim.oci.spec.inputs import (
        ContainerFacts,
        HandlerFacts,
        ImageDefaults,
        NodeFacts,
        ResolvedUser,
        SandboxFacts,
        Spec,
    )

OCI_VERSION = "1.0.2"


def build_container_spec(
    config: ContainerConfig,
    *,
    node: NodeFacts,
    handler: HandlerFacts,
    sandbox: SandboxFacts,
    image: ImageDefaults,
    user: ResolvedUser,
    container: ContainerFacts,
) -> Spec:
    """The runtime-spec of one container.

    Its seccomp part is shared between documents: encode the result, don't modify it.

    Raises InvalidArgumentError for a malformed field, UnsupportedError for an unsupported one, PermissionRefusedError
    for a privilege that this process lacks. Each error names the field.
    """
    context = config.linux.security_context
    _check_supported(config, handler)
    if context.privileged and not sandbox.privileged:
        raise InvalidArgumentError(
            f"privileged: the sandbox {sandbox.id} is not privileged, so its containers must not be"
        )
    selinux.check_options(context.selinux_options)
    # Only checked: runtimes don't know this limit.
    resources.files_limit(config.annotations, node, handler)
    bounding, ambient = capabilities.container_capabilities(context, node, handler)
    process_spec = _build_process(
        config, node=node, sandbox=sandbox, image=image, user=user, container=container
    )
    process_spec["capabilities"] = capabilities.build_capabilities(bounding, ambient)
    linux = _build_linux(
        config, node=node, handler=handler, sandbox=sandbox, user=user, container=container
    )
    seccomp = security.container_seccomp(
        context, node, capabilities=bounding, localhost=container.localhost_seccomp
    )
    if seccomp is not None:
        linux["seccomp"] = seccomp
    spec: Spec = {
        "ociVersion": OCI_VERSION,
        "process": process_spec,
        "root": {"path": container.rootfs_path, "readonly": context.readonly_rootfs},
        "mounts": mounts.build_container_mounts(
            config,
            sandbox=sandbox,
            handler=handler,
            node=node,
            volumes=container.image_volumes,
            sources=container.mount_sources,
        ),
        "annotations": build_container_annotations(
            config.annotations,
            sandbox=sandbox,
            handler=handler,
            container_name=config.metadata.name,
            image_name=image.name,
        ),
        "linux": linux,
    }
    _add_what_the_node_gives(spec, config, sandbox, container)
    return spec


def _build_process(
    config: ContainerConfig,
    *,
    node: NodeFacts,
    sandbox: SandboxFacts,
    image: ImageDefaults,
    user: ResolvedUser,
    container: ContainerFacts,
) -> Spec:
    """The spec's process, but for its capabilities."""
    context = config.linux.security_context
    spec: Spec = {
        "terminal": config.tty,
        "user": build_user(user, node),
        "args": process.build_args(config, image),
        "env": process.build_env(config, image, user, hostname=sandbox.hostname),
        "cwd": process.build_cwd(config, image),
        "noNewPrivileges": context.no_new_privs,
        "oomScoreAdj": resources.oom_score_adj(config.linux.resources.oom_score_adj, node),
    }
    if node.default_ulimits:
        spec["rlimits"] = process.build_rlimits(node.default_ulimits)
    if (profile := apparmor.container_apparmor(context, node)) is not None:
        spec["apparmorProfile"] = profile
    if container.labels.process:
        spec["selinuxLabel"] = container.labels.process
    return spec


def _build_linux(
    config: ContainerConfig,
    *,
    node: NodeFacts,
    handler: HandlerFacts,
    sandbox: SandboxFacts,
    user: ResolvedUser,
    container: ContainerFacts,
) -> Spec:
    """The spec's `linux`, but for seccomp."""
    context = config.linux.security_context
    masked, readonly = security.container_paths(context, node, own_users=sandbox.users is not None)
    namespaces.check_mapped(user, sandbox.users)
    check_ids(user, handler)
    nodes, device_rules = devices.build_devices(
        config, container=container, handler=handler, node=node, user=user
    )
    limits = resources.build_resources(config.linux.resources, node)
    limits["devices"] = device_rules
    if (pids := resources.pids_limit(config.annotations)) is not None:
        limits["pids"] = {"limit": pids}
    linux: Spec = {
        "namespaces": namespaces.build_container_namespaces(
            context.namespace_options,
            sandbox=sandbox,
            container=container,
            node=node,
            privileged=context.privileged,
        ),
        "cgroupsPath": container.cgroups_path,
        **namespaces.build_user_mappings(sandbox, handler),
        "resources": limits,
        "maskedPaths": masked,
        "readonlyPaths": readonly,
    }
    if nodes:
        linux["devices"] = nodes
    if (propagation := mounts.rootfs_propagation(config)) is not None:
        linux["rootfsPropagation"] = propagation
    if container.labels.files:
        linux["mountLabel"] = container.labels.files
    return linux


def _add_what_the_node_gives(
    spec: Spec, config: ContainerConfig, sandbox: SandboxFacts, container: ContainerFacts
) -> None:
    """CDI devices, then the hooks that match."""
    if cdi_edits.requested_devices(config) and not container.cdi_edits:
        raise InvalidArgumentError("CDI_devices: no such device on this node")
    cdi_edits.apply_edits(spec, container.cdi_edits, container.host_devices)
    hooks.add_matching_hooks(
        spec,
        container.hooks,
        annotations={**config.annotations, **sandbox.annotations},
        has_bind_mounts=bool(config.mounts),
    )


def build_user(user: ResolvedUser, node: NodeFacts) -> Spec:
    """The spec's user object."""
    return {
        "uid": user.uid,
        "gid": user.gid,
        "umask": node.umask,
        "additionalGids": list(user.additional_gids),
    }


def encode_spec(spec: Spec) -> bytes:
    """The content of config.json."""
    return msgspec.json.encode(spec)


def _check_supported(config: ContainerConfig, handler: HandlerFacts) -> None:
    namespaces.check_namespace_options(
        config.linux.security_context.namespace_options, handler, is_sandbox=False
    )
    if config.HasField("windows"):
        raise InvalidArgumentError("windows: this node runs Linux")
