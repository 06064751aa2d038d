"""Fills the spec builders' inputs: the one place that turns stored objects into frozen facts.

The builders are pure; whatever must be looked up (the user in a root file system, device nodes, a seccomp profile) is
looked up here. Nothing in a container's root file system is followed by name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError, NotFoundError, WrongStateError
from cri_shim.host.files import read_bounded
from cri_shim.kernel_call import at_length_for, in_time_for, working_on
from cri_shim.oci.hook_files import check_programs
from cri_shim.oci.spec.cdi_edits import device_paths, requested_devices
from cri_shim.oci.spec.container import build_container_spec
from cri_shim.oci.spec.devices import host_device_paths
from cri_shim.oci.spec.inputs import ContainerFacts, ImageDefaults, SandboxFacts
from cri_shim.oci.spec.process import undecodable_env
from cri_shim.oci.spec.profiles import Choice
from cri_shim.oci.spec.resources import build_resources, check_unchangeable, files_limit
from cri_shim.oci.spec.sandbox import (
    build_sandbox_spec,
    check_sandbox_config,
    check_sizing,
    sandbox_sysctls,
)
from cri_shim.oci.spec.seccomp import parse_profile
from cri_shim.oci.spec.security import seccomp_reference
from cri_shim.oci.spec.selinux import Labels
from cri_shim.oci.spec.stop_signal import stop_signal
from cri_shim.oci.spec.user import resolve_sandbox_user, resolve_user
from cri_shim.quoting import quoted
from cri_shim.sandbox.spec.accounts import account_file
from cri_shim.sandbox.spec.host_paths import (
    check_destinations,
    check_devices,
    check_pod_files,
    make_missing,
    make_working_directory,
    resolve_host_paths,
)
from cri_shim.sandbox.spec.mount_depth import check_depths
from cri_shim.sandbox.spec.node import MAX_PROFILE_BYTES, device_nodes, host_devices
from cri_shim.sandbox.spec.node_resources import NodeResources
from cri_shim.sandbox.spec.pod_files import shared_dirs
from cri_shim.sandbox.spec.user_namespace import mappings_of, root_of
from cri_shim.sandbox.store.model import ContainerState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri_shim.host.port import Host
    from cri_shim.image.model import Image
    from cri_shim.oci.spec.inputs import HandlerFacts, NodeFacts, ResolvedUser, Spec
    from cri_shim.oci.spec.seccomp import Profile
    from cri_shim.oci.spec.sysctls import PodSysctls
    from cri_shim.paths import Paths
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.spec.host_paths import HostPath
    from cri_shim.sandbox.spec.user_namespace import PodUserNamespace
    from cri_shim.sandbox.spec.volumes import Volumes
    from cri_shim.sandbox.store.store import Container, Sandbox, Store

log = structlog.get_logger()


class Specs:
    """Builds the runtime-specs of pause containers and containers."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        node: NodeFacts,
        handler_facts: Callable[[str], HandlerFacts],
        containers: Store[Container],
        cgroup_paths: CgroupPaths,
        node_resources: NodeResources | None = None,
    ) -> None:
        self._host = host
        self._paths = paths
        self._node_resources = node_resources = node_resources or NodeResources()
        self._node = dataclasses.replace(node, selinux_enabled=node_resources.selinux is not None)
        self._handler_facts = handler_facts
        self._containers = containers
        self._cgroup_paths = cgroup_paths

    # --- sandboxes -----------------------------------------------------------------------------------------------

    def check_sandbox(self, config: api.PodSandboxConfig, handler: str) -> None:
        """Raises InvalidArgumentError or UnsupportedError for what no sandbox can be."""
        facts = self._handler_facts(handler)
        apparmor = self._node_resources.apparmor
        node = dataclasses.replace(
            self._node, apparmor_profiles=apparmor.promised() if apparmor else None
        )
        check_sandbox_config(config, facts, node)
        sandbox_sysctls(config, node=self._node, handler=facts)
        resolve_sandbox_user(config.linux.security_context)

    def check_sizing(
        self, overhead: api.LinuxContainerResources, resources: api.LinuxContainerResources
    ) -> None:
        """Raises InvalidArgumentError for what no pod's resources can be."""
        check_sizing(overhead=overhead, size=resources, node=self._node)

    def sysctls(self, config: api.PodSandboxConfig, handler: str) -> PodSysctls:
        """The pod's kernel parameters, of which the `net.*` ones are ours to write."""
        return sandbox_sysctls(config, node=self._node, handler=self._handler_facts(handler))

    def sandbox_labels(self, config: api.PodSandboxConfig) -> Labels:
        """A new pod's SELinux labels. Raises InvalidArgumentError."""
        selinux = self._node_resources.selinux
        return selinux.labels_of_sandbox(config) if selinux else Labels()

    async def sandbox_spec(
        self, sandbox: Sandbox, image: Image, users: PodUserNamespace | None
    ) -> Spec:
        """The pause container's runtime-spec, which joins the pod's `users` where it has a namespace for them."""
        return build_sandbox_spec(
            sandbox.config,
            node=await self._current_node(),
            handler=self._handler_facts(sandbox.record.handler),
            sandbox=dataclasses.replace(
                self._sandbox_facts(sandbox), userns_path=users.path if users else None
            ),
            image=image_defaults(image, ""),
            rootfs_path=str(self._paths.sandbox(sandbox.id).rootfs_dir),
            cgroups_path=self._cgroup_paths.of(sandbox).spec_path,
            localhost_seccomp=await self._sandbox_profile(sandbox),
        )

    async def _sandbox_profile(self, sandbox: Sandbox) -> Profile | None:
        context = sandbox.config.linux.security_context
        if seccomp_reference(context).choice is not Choice.LOCALHOST:
            return None  # no file to read: not worth a thread
        what = "reading its seccomp profile"
        return await in_time_for(f"pod {sandbox.id}", what, localhost_profile, context)

    def update_document(self, resources: api.LinuxContainerResources, pids_limit: int) -> Spec:
        """What an OCI runtime's update is told. Raises InvalidArgumentError naming the field."""
        document = build_resources(resources, self._node)
        if pids_limit:
            document["pids"] = {"limit": pids_limit}
        return document

    def check_unchangeable(
        self, now: api.LinuxContainerResources, wanted: api.LinuxContainerResources
    ) -> None:
        """Raises UnsupportedError for a change that no runtime can make."""
        check_unchangeable(now, wanted, self._node)

    def files_limit(self, annotations: Mapping[str, str], handler: str) -> int | None:
        """How many files a container may have open at once; None unset, -1 any number. Raises InvalidArgumentError."""
        return files_limit(annotations, self._node, self._handler_facts(handler))

    # --- containers ----------------------------------------------------------------------------------------------

    def stop_signal(self, config: api.ContainerConfig, image: Image) -> int:
        """The signal that asks the container to end. Raises InvalidArgumentError for what is none."""
        return stop_signal(config, image_defaults(image, ""))

    async def container_spec(
        self, sandbox: Sandbox, container: Container, image: Image, volumes: Volumes
    ) -> tuple[Spec, ResolvedUser]:
        """A container's runtime-spec and whom it runs as; its root file system and `volumes` must be mounted.

        Directories that the request names and that are not there are made: its working directory, its host paths.
        """
        self._node_resources.follow()
        node = await self._current_node()
        pod = f"pod {sandbox.id}"
        spec, user, host_paths = await in_time_for(
            pod,
            "looking at what the request names",
            self._container_spec,
            sandbox,
            container,
            image,
            volumes,
            node,
        )
        selinux = self._node_resources.selinux
        if selinux is not None and any(mount.selinux_relabel for mount in container.config.mounts):
            await at_length_for(
                pod,
                "labelling volumes",
                selinux.relabel_volumes,
                container.config,
                host_paths,
                container.record.labels.files,
            )
        return spec, user

    def container_labels(self, sandbox: Sandbox, config: api.ContainerConfig) -> Labels:
        """A new container's SELinux labels. Raises InvalidArgumentError."""
        selinux = self._node_resources.selinux
        return selinux.labels_of_container(config, sandbox.record.labels) if selinux else Labels()

    async def _current_node(self) -> NodeFacts:
        """The node with the AppArmor profiles that it has now."""
        apparmor = self._node_resources.apparmor
        if apparmor is None:
            return self._node
        return dataclasses.replace(self._node, apparmor_profiles=await apparmor.current())

    def _container_spec(
        self,
        sandbox: Sandbox,
        container: Container,
        image: Image,
        volumes: Volumes,
        node: NodeFacts,
    ) -> tuple[Spec, ResolvedUser, dict[int, HostPath]]:
        config = container.config
        context = config.linux.security_context
        rootfs_dir = self._paths.container(container.id).rootfs_dir
        defaults = image_defaults(image, config.image.user_specified_image or config.image.image)
        user = resolve_user(
            context,
            image_user=defaults.user,
            passwd=account_file(self._host, rootfs_dir, "etc/passwd", config),
            group=account_file(self._host, rootfs_dir, "etc/group", config),
        )
        if context.privileged:
            node = dataclasses.replace(node, host_devices=host_devices())
        host_paths = resolve_host_paths(config)
        cdi_edits = self._node_resources.cdi.edits_for(requested_devices(config))
        facts = ContainerFacts(
            id=container.id,
            rootfs_path=str(rootfs_dir),
            cgroups_path=self._cgroup_paths.of(container).spec_path,
            target_pid=self._target_pid(sandbox, context.namespace_options),
            image_volumes=volumes.declared,
            mount_sources={
                **{index: each.path for index, each in host_paths.items()},
                **{index: str(path) for index, path in volumes.images.items()},
            },
            host_devices={
                path: device_nodes(path)
                for path in (*host_device_paths(config), *device_paths(cdi_edits))
            },
            localhost_seccomp=localhost_profile(context),
            cdi_edits=cdi_edits,
            hooks=self._node_resources.hooks.current(),
            labels=container.record.labels,
        )
        if changed := undecodable_env(config):
            log.warning(
                "environment values are not UTF-8", container_id=container.id, names=changed
            )
        spec = build_container_spec(
            config,
            node=node,
            handler=self._handler_facts(container.record.handler),
            sandbox=self._sandbox_facts(sandbox),
            image=defaults,
            user=user,
            container=facts,
        )
        check_programs(spec)
        check_destinations(
            config,
            {
                **{index: each.is_directory for index, each in host_paths.items()},
                **{index: path.is_dir() for index, path in volumes.images.items()},
            },
            rootfs_dir,
        )
        check_devices(spec, config, rootfs_dir)
        check_pod_files(spec, config, rootfs_dir)
        check_depths(spec, config, rootfs_dir)
        make_working_directory(
            spec,
            rootfs_dir,
            root_of(sandbox),
            "working_dir" if config.working_dir else "image WORKDIR",
        )
        make_missing(host_paths)
        return spec, user, host_paths

    def _target_pid(self, sandbox: Sandbox, options: api.NamespaceOption) -> int | None:
        if options.pid != api.TARGET:
            return None
        field = "namespace_options.target_id"
        if not options.target_id:
            raise InvalidArgumentError(f"{field}: missing, which the PID mode TARGET needs")
        try:
            target = self._containers.find(options.target_id)
        except NotFoundError as error:
            raise NotFoundError(f"{field}: container", options.target_id) from error
        if target.sandbox_id != sandbox.id:
            raise InvalidArgumentError(f"{field}: container {target.id} is in another sandbox")
        process = target.status.process
        if target.state is not ContainerState.RUNNING or process is None:
            raise WrongStateError(f"{field}: container {target.id} is {target.state}, not running")
        return process.pid

    def _sandbox_facts(self, sandbox: Sandbox) -> SandboxFacts:
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
    """What the image asks of its containers."""
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
    """The parsed file of a Localhost seccomp profile.

    Raises InvalidArgumentError for a file that is missing, too large or no profile.
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
