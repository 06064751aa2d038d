"""Builds the daemon's objects: the one place that sees the whole configuration and hands out its sections."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.background import Background
from cri_shim.cni.network import Cni
from cri_shim.daemon.handlers import Handlers
from cri_shim.host.cgroups.layout import effective_driver
from cri_shim.host.cgroups.tree import Cgroups
from cri_shim.image.pull import Puller
from cri_shim.image.store import ImageStore
from cri_shim.oci.conmon import Monitors
from cri_shim.sandbox.container_io import Execs
from cri_shim.sandbox.containers import Containers
from cri_shim.sandbox.exits import Exit, ExitWatch
from cri_shim.sandbox.launch import Launcher
from cri_shim.sandbox.network import PodNetwork
from cri_shim.sandbox.node import boot_id, read_node_facts
from cri_shim.sandbox.pod_files import PodFiles
from cri_shim.sandbox.pod_images import PauseImage
from cri_shim.sandbox.pods import Pods
from cri_shim.sandbox.recovery import Recovery
from cri_shim.sandbox.release import Release
from cri_shim.sandbox.specs import Specs
from cri_shim.sandbox.stats import Stats
from cri_shim.sandbox.store import Container, Sandbox, Store, read_container, read_sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.config import Config
    from cri_shim.host.process import Reaper
    from cri_shim.paths import Paths

CREATES_PER_CORE = 4
ANSWER_HEADROOM_BYTES = 64 << 10
"""Of a gRPC message, for what is in an answer beside the output of an exec."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the daemon is made of."""

    paths: Paths
    reaper: Reaper
    background: Background
    cgroups: Cgroups
    systemd: bool
    handlers: Handlers
    monitors: Monitors
    cni: Cni
    images: ImageStore
    puller: Puller
    exits: ExitWatch
    sandboxes: Store[Sandbox]
    containers: Store[Container]
    pods: Pods
    container_cases: Containers
    stats: Stats
    recovery: Recovery


async def build(config: Config, *, paths: Paths, reaper: Reaper, cni_cache_dir: Path) -> Parts:
    """Everything below the gRPC edge, not yet started.

    Raises ConfigError for what only this node shows to be impossible.
    """
    background = Background()
    cgroups = Cgroups.detect()
    systemd = effective_driver(config.cgroup_driver, cgroups.layout) == "systemd"
    handlers = Handlers(config.runtime, paths=paths, reaper=reaper, systemd=systemd)
    monitors = Monitors(
        reaper, config.runtime.monitor, exits_dir=paths.exits_dir, socket_dir=paths.console_dir
    )
    cni = Cni(
        reaper,
        plugin_dirs=config.cni.plugin_dirs,
        conf_dir=config.cni.conf_dir,
        cache_dir=cni_cache_dir,
        timeout_s=config.cni.timeout_s,
    )
    sandboxes = Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox)
    containers = Store("container", paths.containers_dir, paths.container, read_container)
    images = await ImageStore.open(
        images_dir=paths.images_dir,
        layers_dir=paths.layers_dir,
        reaper=reaper,
        in_use=lambda: {
            layer
            for store in (containers, sandboxes)
            for item in store
            for layer in item.record.layers
        },
        pinned=config.images.pinned,
        discard_blobs=config.images.discard_blobs,
    )
    puller = Puller(images, config.images)
    release = Release(paths=paths, cgroups=cgroups, monitors=monitors, runtime_of=handlers.get)
    specs = Specs(
        paths=paths,
        node=read_node_facts(config.security, cgroups),
        handler_facts=handlers.facts,
        containers=containers,
        systemd=systemd,
        default_parent=config.sandbox.cgroup_parent or "",
    )
    launcher = Launcher(
        paths=paths,
        monitors=monitors,
        release=release,
        start_timeout_s=config.runtime.start_timeout_s,
        max_parallel=config.runtime.max_parallel_creates
        or CREATES_PER_CORE * len(os.sched_getaffinity(0)),
    )
    network = PodNetwork(cni, sandboxes, publish_ports=config.sandbox.hostport)
    this_boot = boot_id()

    def on_exit(object_id: str, exit_: Exit) -> None:
        if (container := containers.get(object_id)) is not None:
            container_cases.endings.on_exit(container, exit_)
        elif (sandbox := sandboxes.get(object_id)) is not None:
            pods.on_exit(sandbox, exit_)

    exits = ExitWatch(paths.exits_dir, on_exit)
    container_cases = Containers(
        paths=paths,
        store=containers,
        sandboxes=sandboxes,
        images=images,
        runtime_of=handlers.get,
        monitors=monitors,
        execs=Execs(
            paths=paths,
            runtime_of=handlers.get,
            reaper=reaper,
            background=background,
            max_output_bytes=config.limits.exec_sync_output_bytes,
            max_answer_bytes=config.limits.grpc_message_bytes - ANSWER_HEADROOM_BYTES,
        ),
        launcher=launcher,
        specs=specs,
        cgroups=cgroups,
        release=release,
        exits=exits,
        background=background,
        boot_id=this_boot,
    )
    pods = Pods(
        paths=paths,
        store=sandboxes,
        runtime_of=handlers.get,
        launcher=launcher,
        network=network,
        files=PodFiles(paths),
        pause_image=PauseImage(images, config.sandbox.image, puller.pull),
        specs=specs,
        release=release,
        exits=exits,
        boot_id=this_boot,
        stop_containers=container_cases.stop_all,
        remove_containers=container_cases.remove_all,
    )
    recovery = Recovery(
        paths=paths,
        sandboxes=sandboxes,
        containers=containers,
        pods=pods,
        container_cases=container_cases,
        network=network,
        runtimes=lambda: handlers.runtimes,
        cgroups=cgroups,
        release=release,
        exits=exits,
        boot_id=this_boot,
    )
    stats = Stats(
        paths=paths,
        store=containers,
        cgroups=cgroups,
        cgroup_dir=container_cases.endings.cgroup_dir,
        cache_s=config.stats.cache_s,
    )
    return Parts(
        paths=paths,
        reaper=reaper,
        background=background,
        cgroups=cgroups,
        systemd=systemd,
        handlers=handlers,
        monitors=monitors,
        cni=cni,
        images=images,
        puller=puller,
        exits=exits,
        sandboxes=sandboxes,
        containers=containers,
        pods=pods,
        container_cases=container_cases,
        stats=stats,
        recovery=recovery,
    )
