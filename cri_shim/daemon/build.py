"""Builds the daemon's objects. Only this composition root sees the whole configuration and hands out its sections.

`mechanisms` builds the objects that work on this node: runtimes, monitors, CNI, images. `sandbox_layer` builds the
objects of `sandbox` on top of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.daemon.mechanisms import open_mechanisms
from cri_shim.daemon.sandbox_layer import build_sandbox_layer
from cri_shim.daemon.streaming import Streaming
from cri_shim.sandbox.exec.session import ExecSessions
from cri_shim.sandbox.stream_backend import StreamBackend
from cri_shim.sandbox.stream_requests import StreamRequests
from cri_shim.streaming.tickets import Tickets

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.cni.leftover import LeftoverPlugins
    from cri_shim.cni.network import Cni
    from cri_shim.config import Config
    from cri_shim.daemon.handlers import Handlers
    from cri_shim.daemon.mechanisms import Mechanisms
    from cri_shim.daemon.sandbox_layer import SandboxLayer
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.process import Reaper
    from cri_shim.image.pull import Puller
    from cri_shim.image.store import ImageStore
    from cri_shim.oci.conmon import Monitors
    from cri_shim.operations import Operations
    from cri_shim.paths import Paths
    from cri_shim.sandbox.container_events import ContainerEvents
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.exit_dispatcher import ExitDispatcher
    from cri_shim.sandbox.exits import ExitWatch
    from cri_shim.sandbox.network.pending_deletes import PendingDeletes
    from cri_shim.sandbox.network.reconciler import NetworkReconciler
    from cri_shim.sandbox.pod_metrics import PodMetrics
    from cri_shim.sandbox.pod_stats import PodStats
    from cri_shim.sandbox.pods import Pods
    from cri_shim.sandbox.recovery.recovery import Recovery
    from cri_shim.sandbox.recovery.wipe import Wipe
    from cri_shim.sandbox.spec.node_resources import NodeResources
    from cri_shim.sandbox.stats import Stats
    from cri_shim.sandbox.store.store import Container, Sandbox, Store


@dataclass(frozen=True, slots=True)
class Parts:
    """The daemon's objects."""

    paths: Paths
    reaper: Reaper
    background: Background
    operations: Operations
    cgroups: Cgroups
    systemd: bool
    handlers: Handlers
    monitors: Monitors
    cni: Cni
    leftover_plugins: LeftoverPlugins
    pending_deletes: PendingDeletes
    reconciler: NetworkReconciler
    images: ImageStore
    puller: Puller
    exits: ExitWatch
    exit_dispatcher: ExitDispatcher
    sandboxes: Store[Sandbox]
    containers: Store[Container]
    pods: Pods
    container_service: Containers
    stats: Stats
    pod_stats: PodStats
    events: ContainerEvents
    pod_metrics: PodMetrics
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
    """Build everything below the gRPC edge, without starting it.

    A process that creates no containers passes an empty `node_resources`. Raises ConfigError for settings that this
    node does not support.
    """
    on = await open_mechanisms(config, paths, reaper, cni_cache_dir, node_resources)
    layer = build_sandbox_layer(config, on)
    on.cni.on_change(layer.reconciler.wake)
    tickets = Tickets(config.streaming.token_ttl_s)
    streaming = Streaming(
        config.streaming, config.log, tickets=tickets, reaper=reaper, background=on.background
    )
    return Parts(
        paths=paths,
        reaper=reaper,
        background=on.background,
        operations=on.operations,
        cgroups=on.cgroups,
        systemd=on.systemd,
        handlers=on.handlers,
        monitors=on.monitors,
        cni=on.cni,
        leftover_plugins=on.leftover_plugins,
        pending_deletes=layer.pending_deletes,
        reconciler=layer.reconciler,
        images=on.images,
        puller=on.puller,
        exits=layer.exits,
        exit_dispatcher=layer.exit_dispatcher,
        sandboxes=on.sandboxes,
        containers=on.containers,
        pods=layer.pods,
        container_service=layer.containers,
        stats=layer.stats,
        pod_stats=layer.pod_stats,
        events=layer.events,
        pod_metrics=layer.pod_metrics,
        recovery=layer.recovery,
        wipe=layer.wipe,
        node_resources=on.node_resources,
        streaming=streaming,
        stream_backend=_stream_backend(on, layer, tickets),
        streams=StreamRequests(layer.containers, layer.pods, tickets, streaming.base_url),
    )


def _stream_backend(on: Mechanisms, layer: SandboxLayer, tickets: Tickets) -> StreamBackend:
    return StreamBackend(
        host=on.host,
        tickets=tickets,
        containers=layer.containers,
        pods=layer.pods,
        execs=ExecSessions(layer.exec_processes, paths=on.paths, background=on.background),
        attach_sessions=layer.attach_sessions,
        background=on.background,
        runtime_of=on.handlers.get,
    )
