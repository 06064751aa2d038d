"""Opens the node's resources for containers as configured (`sandbox/spec/node_resources`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.oci.cdi_registry import CdiRegistry
from cri_shim.oci.hook_files import HookFiles
from cri_shim.oci.spec.selinux import level_of
from cri_shim.sandbox.spec.apparmor import AppArmor
from cri_shim.sandbox.spec.node_resources import NodeResources
from cri_shim.sandbox.spec.selinux import open_selinux

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.config.model import SecuritySettings
    from cri_shim.host.process import Reaper
    from cri_shim.paths import Paths
    from cri_shim.sandbox.store.store import Container, Sandbox, Store


async def open_node_resources(
    settings: SecuritySettings,
    *,
    paths: Paths,
    reaper: Reaper,
    sandboxes: Store[Sandbox],
    containers: Store[Container],
) -> NodeResources:
    """Open CDI devices, OCI hooks and SELinux labels, and load the AppArmor profile.

    Raises ConfigError for settings that this node does not support.
    """

    def levels_taken() -> Iterator[str]:
        yield from (level_of(sandbox.record.labels) for sandbox in sandboxes)
        yield from (level_of(container.record.labels) for container in containers)

    apparmor = AppArmor(reaper, settings.apparmor_profile, paths.apparmor_file)
    await apparmor.prepare()
    return NodeResources(
        apparmor=apparmor,
        cdi=CdiRegistry(settings.cdi_dirs),
        hooks=HookFiles(settings.hooks_dirs, settings.hook_spec),
        selinux=open_selinux(settings.selinux, levels_taken),
    )
