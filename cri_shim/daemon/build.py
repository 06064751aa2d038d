"""Builds the daemon's objects: the one place that sees the whole configuration and hands out its sections."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.background import Background
from cri_shim.cni.network import Cni
from cri_shim.config.model import GcMode
from cri_shim.daemon.handlers import Handlers
from cri_shim.daemon.images import layers_of, open_store
from cri_shim.daemon.node_resources import open_node_resources
from cri_shim.daemon.streaming import Streaming
from cri_shim.host.cgroups.layout import effective_driver
from cri_shim.host.cgroups.placement import parent_directory
from cri_shim.host.cgroups.tree import Cgroups
from cri_shim.image.pull import Puller
from cri_shim.oci.conmon import Monitors
from cri_shim.operations import Operations
from cri_shim.sandbox.containers import Containers
from cri_shim.sandbox.exec.attach import AttachSessions
from cri_shim.sandbox.exec.files_limits import FilesLimits
from cri_shim.sandbox.exec.process import ExecProcesses
from cri_shim.sandbox.exec.session import ExecSessions
from cri_shim.sandbox.exec.sync import Execs
from cri_shim.sandbox.exits import Exit, ExitWatch
from cri_shim.sandbox.launch import Launcher
from cri_shim.sandbox.network.pending_deletes import PendingDeletes
from cri_shim.sandbox.network.pod_network import PodNetwork
from cri_shim.sandbox.network.reconciler import NetworkReconciler
from cri_shim.sandbox.pod_images import PauseImage
from cri_shim.sandbox.pods import Pods
from cri_shim.sandbox.recovery.orphans import Orphans
from cri_shim.sandbox.recovery.recovery import Recovery
from cri_shim.sandbox.recovery.wipe import Wipe
from cri_shim.sandbox.spec.node import boot_id, read_node_facts
from cri_shim.sandbox.spec.pod_files import PodFiles
from cri_shim.sandbox.spec.specs import Specs
from cri_shim.sandbox.stats import Stats
from cri_shim.sandbox.store.store import Container, Sandbox, Store, read_container, read_sandbox
from cri_shim.sandbox.stream_backend import StreamBackend
from cri_shim.sandbox.stream_requests import StreamRequests
from cri_shim.sandbox.teardown import Teardown

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.config import Config
    from cri_shim.host.process import Reaper
    from cri_shim.image.store import ImageStore
    from cri_shim.paths import Paths
    from cri_shim.sandbox.spec.node_resources import NodeResources

CREATES_PER_CORE = 4
ANSWER_HEADROOM_BYTES = 64 << 10
"""Of a gRPC message, for what is in an answer beside the output of an exec."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the daemon is made of."""

    paths: Paths
    reaper: Reaper
    background: Background
    operations: Operations
    cgroups: Cgroups
    systemd: bool
    handlers: Handlers
    monitors: Monitors
    cni: Cni
    pending_deletes: PendingDeletes
    reconciler: NetworkReconciler
    images: ImageStore
    puller: Puller
    exits: ExitWatch
    sandboxes: Store[Sandbox]
    containers: Store[Container]
    pods: Pods
    container_service: Containers
    stats: Stats
    recovery: Recovery
    wipe: Wipe
    node_resources: NodeResources
    streaming: Streaming
    stream_backend: StreamBackend
    streams: StreamRequests


async def build(
    config: Config,
    *,
    paths: Paths,
    reaper: Reaper,
    cni_cache_dir: Path,
    node_resources: NodeResources | None = None,
) -> Parts:
    """Everything below the gRPC edge, not yet started; `node_resources` are for who makes no containers.

    Raises ConfigError for what only this node shows to be impossible.
    """
    background = Background()
    operations = Operations()
    cgroups = Cgroups.detect()
    systemd = effective_driver(config.cgroup_driver, cgroups.layout) == "systemd"
    handlers = Handlers(
        config.runtime, paths=paths, reaper=reaper, systemd=systemd, layout=cgroups.layout
    )
    monitors = Monitors(
        reaper, config.runtime.monitor, exits_dir=paths.exits_dir, socket_dir=paths.console_dir
    )
    cni = Cni(
        reaper,
        plugin_dirs=config.cni.plugin_dirs,
        conf_dir=config.cni.conf_dir,
        cache_dir=cni_cache_dir,
        timeout_s=config.cni.timeout_s,
        loopback_plugin=not config.cni.use_internal_loopback,
    )
    sandboxes = Store("sandbox", paths.sandboxes_dir, paths.sandbox, read_sandbox)
    containers = Store("container", paths.containers_dir, paths.container, read_container)
    images = await open_store(
        config, paths, reaper, lambda: layers_of(containers) | layers_of(sandboxes)
    )
    puller = Puller(images, config.images, operations)
    teardown = Teardown(paths=paths, cgroups=cgroups, monitors=monitors, runtime_of=handlers.get)
    node_resources = node_resources or await open_node_resources(
        config.security, paths=paths, reaper=reaper, sandboxes=sandboxes, containers=containers
    )
    specs = Specs(
        paths=paths,
        node_resources=node_resources,
        node=read_node_facts(config.security, cgroups),
        handler_facts=handlers.facts,
        containers=containers,
        systemd=systemd,
        default_parent=config.sandbox.cgroup_parent or "",
    )
    launcher = Launcher(
        paths=paths,
        monitors=monitors,
        teardown=teardown,
        cgroups=cgroups,
        start_timeout_s=config.runtime.start_timeout_s,
        max_parallel=config.runtime.max_parallel_creates
        or CREATES_PER_CORE * len(os.sched_getaffinity(0)),
    )
    pending_deletes = PendingDeletes(paths.pending_deletes_dir)
    network = PodNetwork(
        cni,
        sandboxes,
        pending_deletes,
        background=background,
        publish_ports=config.sandbox.hostport,
    )
    reconciler = NetworkReconciler(
        cni=cni,
        network=network,
        sandboxes=sandboxes,
        pending_deletes=pending_deletes,
        operations=operations,
        background=background,
        collects_garbage=config.cni.gc is GcMode.AUTO,
    )
    cni.on_change(reconciler.wake)
    this_boot = boot_id()

    def on_exit(object_id: str, exit_: Exit) -> None:
        if (container := containers.get(object_id)) is not None:
            container_service.exit_handling.on_exit(container, exit_)
        elif (sandbox := sandboxes.get(object_id)) is not None:
            pods.on_exit(sandbox, exit_)

    attach_sessions = AttachSessions(paths=paths, monitors=monitors, background=background)
    exits = ExitWatch(paths.exits_dir, on_exit, needs_monitor=attach_sessions.unblock)
    exec_processes = ExecProcesses(
        paths=paths,
        runtime_of=handlers.get,
        reaper=reaper,
        files_limits=FilesLimits(cgroups, specs.cgroup_path),
        pids_of=lambda container: cgroups.pids(
            specs.cgroup_path(container.record.cgroup_parent, container.id).relative_dir
        ),
    )
    container_service = Containers(
        paths=paths,
        store=containers,
        sandboxes=sandboxes,
        images=images,
        runtime_of=handlers.get,
        monitors=monitors,
        execs=Execs(
            exec_processes,
            background=background,
            max_output_bytes=config.limits.exec_sync_output_bytes,
            max_answer_bytes=config.limits.grpc_message_bytes - ANSWER_HEADROOM_BYTES,
        ),
        launcher=launcher,
        specs=specs,
        cgroups=cgroups,
        teardown=teardown,
        exits=exits,
        background=background,
        attach_sessions=attach_sessions,
        operations=operations,
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
        teardown=teardown,
        exits=exits,
        reaper=reaper,
        operations=operations,
        boot_id=this_boot,
        stop_containers=container_service.stop_all,
        remove_containers=container_service.remove_all,
    )
    orphans = Orphans(
        paths=paths,
        teardown=teardown,
        network=network,
        monitors=monitors,
        runtimes=lambda: handlers.runtimes,
    )
    recovery = Recovery(
        paths=paths,
        sandboxes=sandboxes,
        containers=containers,
        pods=pods,
        container_service=container_service,
        orphans=orphans,
        runtimes=lambda: handlers.runtimes,
        cgroups=cgroups,
        teardown=teardown,
        exits=exits,
        background=background,
        operations=operations,
        boot_id=this_boot,
    )
    wipe = Wipe(
        sandboxes=sandboxes,
        containers=containers,
        pods=pods,
        container_service=container_service,
        orphans=orphans,
        network=network,
        pending_deletes=pending_deletes,
        reconciler=reconciler,
        cgroups=cgroups,
        # A slice is systemd's to remove.
        own_cgroup=""
        if systemd
        else parent_directory(config.sandbox.cgroup_parent or "", systemd=False),
        images=images,
        puller=puller,
    )
    stats = Stats(
        paths=paths,
        store=containers,
        cgroups=cgroups,
        cgroup_dir=container_service.exit_handling.cgroup_dir,
        background=background,
        cache_s=config.stats.cache_s,
    )
    streaming = Streaming(config.streaming, config.log, reaper=reaper, background=background)
    return Parts(
        paths=paths,
        reaper=reaper,
        background=background,
        operations=operations,
        cgroups=cgroups,
        systemd=systemd,
        handlers=handlers,
        monitors=monitors,
        cni=cni,
        pending_deletes=pending_deletes,
        reconciler=reconciler,
        images=images,
        puller=puller,
        exits=exits,
        sandboxes=sandboxes,
        containers=containers,
        pods=pods,
        container_service=container_service,
        stats=stats,
        recovery=recovery,
        wipe=wipe,
        node_resources=node_resources,
        streaming=streaming,
        stream_backend=StreamBackend(
            tickets=streaming.tickets,
            containers=container_service,
            pods=pods,
            execs=ExecSessions(exec_processes, paths=paths, background=background),
            attach_sessions=attach_sessions,
            background=background,
        ),
        streams=StreamRequests(container_service, pods, streaming.tickets, streaming.base_url),
    )
