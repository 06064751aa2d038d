"""Opens the mechanisms of this node, on which the sandbox layer is built. Unit tests pass others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.background import Background
from cri_shim.cni.leftover import LeftoverPlugins
from cri_shim.cni.network import Cni
from cri_shim.daemon.handlers import Handlers
from cri_shim.daemon.images import layers_of, open_store
from cri_shim.daemon.node_resources import open_node_resources
from cri_shim.host.cgroups.layout import effective_driver
from cri_shim.host.cgroups.tree import Cgroups
from cri_shim.host.port import Host
from cri_shim.image.pull import Puller
from cri_shim.oci.conmon import Monitors
from cri_shim.oci.shim.shims import Shims
from cri_shim.oci.shim.streams import StreamsHolder
from cri_shim.operations import Operations
from cri_shim.sandbox.spec.node import boot_id, read_node_facts
from cri_shim.sandbox.store.store import Container, Sandbox, Store, read_container, read_sandbox

if TYPE_CHECKING:
    from cri_shim.config import Config
    from cri_shim.host.process import Reaper
    from cri_shim.image.store import ImageStore
    from cri_shim.oci.spec.inputs import NodeFacts
    from cri_shim.paths import Paths
    from cri_shim.sandbox.spec.node_resources import NodeResources


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """The objects below the sandbox layer."""

    host: Host
    paths: Paths
    host_etc: Path
    """The directory of the node's `hosts` and `resolv.conf`."""
    boot_id: str
    node: NodeFacts
    node_resources: NodeResources
    systemd: bool
    """Whether the cgroup driver is systemd."""
    cgroups: Cgroups
    reaper: Reaper
    background: Background
    operations: Operations
    handlers: Handlers
    monitors: Monitors
    cni: Cni
    leftover_plugins: LeftoverPlugins
    images: ImageStore
    puller: Puller
    sandboxes: Store[Sandbox]
    containers: Store[Container]


async def open_mechanisms(
    config: Config,
    paths: Paths,
    reaper: Reaper,
    cni_cache_dir: Path,
    node_resources: NodeResources | None,
) -> Mechanisms:
    """Open the mechanisms of this node. `node_resources` as in `build.build`. Raises ConfigError."""
    operations = Operations()
    cgroups = Cgroups.detect()
    systemd = effective_driver(config.cgroup_driver, cgroups.layout) == "systemd"
    leftover_plugins = LeftoverPlugins(config.cni.plugin_dirs)
    sandboxes = Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox)
    containers = Store("container", paths.containers_dir, paths.container, read_container)
    images = await open_store(
        config, paths, reaper, lambda: layers_of(containers) | layers_of(sandboxes)
    )
    background = Background()
    return Mechanisms(
        host=Host(),
        paths=paths,
        host_etc=Path("/etc"),
        boot_id=boot_id(),
        node=read_node_facts(config.security, cgroups),
        node_resources=node_resources
        or await open_node_resources(
            config.security, paths=paths, reaper=reaper, sandboxes=sandboxes, containers=containers
        ),
        systemd=systemd,
        cgroups=cgroups,
        reaper=reaper,
        background=background,
        operations=operations,
        handlers=Handlers(
            config.runtime,
            paths=paths,
            reaper=reaper,
            shims=_shims(paths, reaper, background),
            systemd=systemd,
            layout=cgroups.layout,
        ),
        monitors=Monitors(
            reaper, config.runtime.monitor, exits_dir=paths.exits_dir, socket_dir=paths.console_dir
        ),
        cni=Cni(
            reaper,
            plugin_dirs=config.cni.plugin_dirs,
            conf_dir=config.cni.conf_dir,
            cache_dir=cni_cache_dir,
            leftovers=leftover_plugins,
            timeout_s=config.cni.timeout_s,
            loopback_plugin=not config.cni.use_internal_loopback,
        ),
        leftover_plugins=leftover_plugins,
        images=images,
        puller=Puller(images, config.images, operations),
        sandboxes=sandboxes,
        containers=containers,
    )


def _shims(paths: Paths, reaper: Reaper, background: Background) -> Shims:
    streams = StreamsHolder(reaper, background, paths.streams_socket)
    return Shims(streams=streams, background=background, exits_dir=paths.exits_dir)
