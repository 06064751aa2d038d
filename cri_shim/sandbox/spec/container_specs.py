"""Builds the runtime-specs of containers: collects the facts that the pure builders need.

These are the user in the root file system, device nodes, host paths, and a seccomp profile. Paths in a container's root
file system are opened below its root, so that no link leads out of it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import structlog

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError, NotFoundError, WrongStateError
from cri_shim.kernel_call import at_length_for, in_time_for
from cri_shim.oci.hook_files import check_programs
from cri_shim.oci.spec.cdi_edits import device_paths, requested_devices
from cri_shim.oci.spec.container import build_container_spec
from cri_shim.oci.spec.devices import host_device_paths
from cri_shim.oci.spec.inputs import ContainerFacts
from cri_shim.oci.spec.process import undecodable_env
from cri_shim.oci.spec.selinux import Labels
from cri_shim.oci.spec.stop_signal import stop_signal
from cri_shim.oci.spec.user import resolve_user
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
from cri_shim.sandbox.spec.node import device_nodes, host_devices
from cri_shim.sandbox.spec.spec_facts import image_defaults, localhost_profile
from cri_shim.sandbox.spec.user_namespace import root_of
from cri_shim.sandbox.store.model import ContainerState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cri_shim.host.port import Host
    from cri_shim.image.model import Image
    from cri_shim.oci.spec.inputs import NodeFacts, ResolvedUser, Spec
    from cri_shim.paths import Paths
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
    from cri_shim.sandbox.spec.host_paths import HostPath
    from cri_shim.sandbox.spec.spec_facts import SpecFacts
    from cri_shim.sandbox.spec.volumes import Volumes
    from cri_shim.sandbox.store.store import Container, Sandbox, Store

log = structlog.get_logger()


class ContainerSpecs:
    """Builds the runtime-specs of containers."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        facts: SpecFacts,
        containers: Store[Container],
        cgroup_paths: CgroupPaths,
    ) -> None:
        """`containers` are the possible targets of the PID mode TARGET."""
        self._host = host
        self._paths = paths
        self._facts = facts
        self._containers = containers
        self._cgroup_paths = cgroup_paths

    def stop_signal(self, config: api.ContainerConfig, image: Image) -> int:
        """The container's stop signal. Raises InvalidArgumentError for an unknown signal."""
        return stop_signal(config, image_defaults(image, ""))

    async def build(
        self, sandbox: Sandbox, container: Container, image: Image, volumes: Volumes
    ) -> tuple[Spec, ResolvedUser]:
        """Build a container's runtime-spec, and resolve its user. Root file system and `volumes` must be mounted.

        Creates the working directory and the host paths of mounts if they are missing.
        """
        self._facts.node_resources.follow()
        node = await self._facts.current_node()
        pod = f"pod {sandbox.id}"
        spec, user, host_paths = await in_time_for(
            pod,
            "looking at what the request names",
            self._build,
            sandbox,
            container,
            image,
            volumes,
            node,
        )
        selinux = self._facts.node_resources.selinux
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

    def labels(self, sandbox: Sandbox, config: api.ContainerConfig) -> Labels:
        """A new container's SELinux labels. Raises InvalidArgumentError."""
        selinux = self._facts.node_resources.selinux
        return selinux.labels_of_container(config, sandbox.record.labels) if selinux else Labels()

    def _build(
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
        facts = self._container_facts(sandbox, container, volumes, host_paths)
        if changed := undecodable_env(config):
            log.warning(
                "environment values are not UTF-8", container_id=container.id, names=changed
            )
        spec = build_container_spec(
            config,
            node=node,
            handler=self._facts.handler(container.record.handler),
            sandbox=self._facts.of_sandbox(sandbox),
            image=defaults,
            user=user,
            container=facts,
        )
        _check_against_image(spec, config, rootfs_dir, volumes, host_paths)
        field = "working_dir" if config.working_dir else "image WORKDIR"
        make_working_directory(spec, rootfs_dir, root_of(sandbox), field)
        make_missing(host_paths)
        return spec, user, host_paths

    def _container_facts(
        self,
        sandbox: Sandbox,
        container: Container,
        volumes: Volumes,
        host_paths: Mapping[int, HostPath],
    ) -> ContainerFacts:
        config = container.config
        context = config.linux.security_context
        cdi_edits = self._facts.node_resources.cdi.edits_for(requested_devices(config))
        return ContainerFacts(
            id=container.id,
            rootfs_path=str(self._paths.container(container.id).rootfs_dir),
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
            hooks=self._facts.node_resources.hooks.current(),
            labels=container.record.labels,
        )

    def _target_pid(self, sandbox: Sandbox, options: api.NamespaceOption) -> int | None:
        if options.pid != api.TARGET:
            return None
        field = "namespace_options.target_id"
        if not options.target_id:
            raise InvalidArgumentError(f"{field}: must be set for the PID mode TARGET")
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


def _check_against_image(
    spec: Spec,
    config: api.ContainerConfig,
    rootfs_dir: Path,
    volumes: Volumes,
    host_paths: Mapping[int, HostPath],
) -> None:
    """Check hook programs, and the destinations of mounts and devices in the mounted root file system."""
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
