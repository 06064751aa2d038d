"""Collects the facts of every runtime-spec: about the node, the handlers, and a pod's record."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError
from cri_shim.host.files import read_bounded
from cri_shim.kernel_call import working_on
from cri_shim.oci.spec.inputs import ImageDefaults, SandboxFacts
from cri_shim.oci.spec.profiles import Choice
from cri_shim.oci.spec.seccomp import parse_profile
from cri_shim.oci.spec.security import seccomp_reference
from cri_shim.quoting import quoted
from cri_shim.sandbox.spec.node import MAX_PROFILE_BYTES
from cri_shim.sandbox.spec.pod_files import shared_dirs
from cri_shim.sandbox.spec.user_namespace import mappings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.image.model import Image
    from cri_shim.oci.spec.inputs import HandlerFacts, NodeFacts
    from cri_shim.oci.spec.seccomp import Profile
    from cri_shim.paths import Paths
    from cri_shim.sandbox.spec.node_resources import NodeResources
    from cri_shim.sandbox.store.store import Sandbox


class SpecFacts:
    """The current facts."""

    def __init__(
        self,
        *,
        paths: Paths,
        node: NodeFacts,
        node_resources: NodeResources,
        handler_facts: Callable[[str], HandlerFacts],
    ) -> None:
        self._paths = paths
        self.node = dataclasses.replace(node, selinux_enabled=node_resources.selinux is not None)
        """Without AppArmor profiles, which change while the daemon runs."""
        self.node_resources = node_resources
        self.handler = handler_facts
        """Returns the facts of a handler by its name."""

    def promised_node(self) -> NodeFacts:
        """The node with the AppArmor profiles that are loaded or can be loaded. Does not load any."""
        apparmor = self.node_resources.apparmor
        profiles = apparmor.promised() if apparmor else None
        return dataclasses.replace(self.node, apparmor_profiles=profiles)

    async def current_node(self) -> NodeFacts:
        """The node with the loaded AppArmor profiles, after loading our own again if it has vanished."""
        apparmor = self.node_resources.apparmor
        if apparmor is None:
            return self.node
        return dataclasses.replace(self.node, apparmor_profiles=await apparmor.current())

    def of_sandbox(self, sandbox: Sandbox) -> SandboxFacts:
        """The facts of a pod's record, for its pause container and its containers."""
        record, paths = sandbox.record, self._paths.sandbox(sandbox.id)
        security = sandbox.config.linux.security_context
        host_ipc = security.namespace_options.ipc == api.NODE
        process = sandbox.status.process
        shm_dir, etc_dir = shared_dirs(paths)
        return SandboxFacts(
            id=sandbox.id,
            name=record.metadata.name,
            namespace=record.metadata.namespace,
            uid=record.metadata.uid,
            hostname=record.hostname,
            netns_path=record.netns or None,
            pause_pid=process.pid if process else None,
            users=mappings_of(sandbox),
            host_ipc=host_ipc,
            privileged=security.privileged,
            shm_dir=None if host_ipc else str(shm_dir),
            hostname_file=str(etc_dir / "hostname"),
            hosts_file=str(etc_dir / "hosts"),
            resolv_conf_file=str(etc_dir / "resolv.conf"),
            annotations=dict(sandbox.config.annotations),
            labels=record.labels,
        )


def image_defaults(image: Image, name: str) -> ImageDefaults:
    """The defaults for containers in the image's configuration."""
    config = image.config
    return ImageDefaults(
        name=name,
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        env=config.env,
        working_dir=config.working_dir,
        user=config.user,
        stop_signal=config.stop_signal,
    )


def localhost_profile(
    context: api.LinuxContainerSecurityContext | api.LinuxSandboxSecurityContext,
) -> Profile | None:
    """Read and parse a Localhost seccomp profile. None if the request names none. Blocking.

    Raises InvalidArgumentError for a file that is missing, too large or not a profile.
    """
    reference = seccomp_reference(context)
    if reference.choice is not Choice.LOCALHOST:
        return None
    working_on(reference.said_in, reference.name)
    try:
        return parse_profile(
            read_bounded(Path(reference.name), MAX_PROFILE_BYTES),
            name=f"{reference.name} ({reference.said_in})",
        )
    except OSError as error:
        raise InvalidArgumentError(
            f"{reference.said_in}: {quoted(reference.name)}: {error.strerror}"
        ) from error
