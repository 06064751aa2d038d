"""Builds every object of the sandbox layer on given mechanisms.

The daemon passes the mechanisms of its node, unit tests pass fakes: both get the same objects, connected in the same
way. Each object gets what it uses; none is reached through another.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cri_shim.daemon.networks import build_networks
from cri_shim.daemon.statistics import build_statistics
from cri_shim.sandbox.container_events import ContainerEvents
from cri_shim.sandbox.container_removal import ContainerRemoval
from cri_shim.sandbox.container_resources import ContainerResources
from cri_shim.sandbox.containers import Containers
from cri_shim.sandbox.creation import Creation
from cri_shim.sandbox.exec.attach import AttachSessions
from cri_shim.sandbox.exec.files_limits import FilesLimits
from cri_shim.sandbox.exec.process import ExecProcesses
from cri_shim.sandbox.exec.sync import Execs
from cri_shim.sandbox.exit_dispatcher import ExitDispatcher
from cri_shim.sandbox.exit_handling import ExitHandling
from cri_shim.sandbox.exits import ExitWatch
from cri_shim.sandbox.launch import Launcher
from cri_shim.sandbox.pause import PauseContainers
from cri_shim.sandbox.pod_images import PauseImage
from cri_shim.sandbox.pods import Pods
from cri_shim.sandbox.recovery.orphans import Orphans
from cri_shim.sandbox.recovery.recovery import Recovery
from cri_shim.sandbox.recovery.unfinished import Unfinished
from cri_shim.sandbox.recovery.wipe import Wipe
from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
from cri_shim.sandbox.spec.container_limits import ContainerLimits
from cri_shim.sandbox.spec.container_specs import ContainerSpecs
from cri_shim.sandbox.spec.pod_files import PodFiles
from cri_shim.sandbox.spec.sandbox_specs import SandboxSpecs
from cri_shim.sandbox.spec.spec_facts import SpecFacts
from cri_shim.sandbox.teardown import Teardown

if TYPE_CHECKING:
    from cri_shim.config import Config
    from cri_shim.daemon.mechanisms import Mechanisms
    from cri_shim.daemon.networks import Networks
    from cri_shim.sandbox.network.pending_deletes import PendingDeletes
    from cri_shim.sandbox.network.pod_network import PodNetwork
    from cri_shim.sandbox.network.reconciler import NetworkReconciler
    from cri_shim.sandbox.pod_metrics import PodMetrics
    from cri_shim.sandbox.pod_stats import PodStats
    from cri_shim.sandbox.stats import Stats

CREATES_PER_CORE = 4
ANSWER_HEADROOM_BYTES = 64 << 10
"""Bytes of a gRPC message reserved for everything but an exec's output."""


@dataclass(frozen=True, slots=True)
class SandboxLayer:
    """The layer's objects, not yet started."""

    cgroup_paths: CgroupPaths
    facts: SpecFacts
    teardown: Teardown
    launcher: Launcher
    pending_deletes: PendingDeletes
    network: PodNetwork
    reconciler: NetworkReconciler
    attach_sessions: AttachSessions
    exits: ExitWatch
    exec_processes: ExecProcesses
    creation: Creation
    exit_handling: ExitHandling
    removal: ContainerRemoval
    containers: Containers
    pods: Pods
    exit_dispatcher: ExitDispatcher
    orphans: Orphans
    recovery: Recovery
    wipe: Wipe
    stats: Stats
    pod_stats: PodStats
    events: ContainerEvents
    pod_metrics: PodMetrics


class _Basis(NamedTuple):
    """The objects that both pods and containers need."""

    cgroup_paths: CgroupPaths
    facts: SpecFacts
    sandbox_specs: SandboxSpecs
    container_specs: ContainerSpecs
    limits: ContainerLimits
    teardown: Teardown
    launcher: Launcher
    attach_sessions: AttachSessions
    exits: ExitWatch
    files_limits: FilesLimits


class _Containers(NamedTuple):
    exec_processes: ExecProcesses
    creation: Creation
    exit_handling: ExitHandling
    removal: ContainerRemoval


def build_sandbox_layer(config: Config, on: Mechanisms) -> SandboxLayer:
    """Build the objects. Nothing is started, and no file is read."""
    basis = _basis(config, on)
    networks = build_networks(config, on)
    parts = _containers(on, basis)
    containers = _container_service(config, on, basis, parts)
    pods = _pods(config, on, basis, networks, containers)
    statistics = build_statistics(config, on, basis.cgroup_paths)
    orphans = Orphans(
        host=on.host,
        paths=on.paths,
        teardown=basis.teardown,
        network=networks.network,
        monitors=on.monitors,
        runtimes=lambda: on.handlers.runtimes,
    )
    return SandboxLayer(
        cgroup_paths=basis.cgroup_paths,
        facts=basis.facts,
        teardown=basis.teardown,
        launcher=basis.launcher,
        pending_deletes=networks.pending_deletes,
        network=networks.network,
        reconciler=networks.reconciler,
        attach_sessions=basis.attach_sessions,
        exits=basis.exits,
        exec_processes=parts.exec_processes,
        creation=parts.creation,
        exit_handling=parts.exit_handling,
        removal=parts.removal,
        containers=containers,
        pods=pods,
        exit_dispatcher=ExitDispatcher(
            sandboxes=on.sandboxes,
            containers=on.containers,
            pods=pods,
            exit_handling=parts.exit_handling,
        ),
        orphans=orphans,
        recovery=_recovery(on, basis, parts, containers, pods, orphans),
        wipe=_wipe(on, basis, networks, parts, containers, pods, orphans),
        stats=statistics.stats,
        pod_stats=statistics.pod_stats,
        events=ContainerEvents(
            sandboxes=on.sandboxes, containers=on.containers, enabled=config.events.enabled
        ),
        pod_metrics=statistics.pod_metrics,
    )


def _basis(config: Config, on: Mechanisms) -> _Basis:
    cgroup_paths = CgroupPaths(
        systemd=on.systemd, default_parent=config.sandbox.cgroup_parent or ""
    )
    teardown = Teardown(
        host=on.host,
        paths=on.paths,
        cgroups=on.cgroups,
        monitors=on.monitors,
        runtime_of=on.handlers.get,
        clear_of_shim=on.handlers.clear_of_shim,
    )
    facts = SpecFacts(
        paths=on.paths,
        node=on.node,
        node_resources=on.node_resources,
        handler_facts=on.handlers.facts,
    )
    attach_sessions = AttachSessions(paths=on.paths, monitors=on.monitors, background=on.background)
    return _Basis(
        cgroup_paths=cgroup_paths,
        facts=facts,
        sandbox_specs=SandboxSpecs(paths=on.paths, facts=facts, cgroup_paths=cgroup_paths),
        container_specs=ContainerSpecs(
            host=on.host,
            paths=on.paths,
            facts=facts,
            containers=on.containers,
            cgroup_paths=cgroup_paths,
        ),
        limits=ContainerLimits(facts),
        teardown=teardown,
        launcher=Launcher(
            host=on.host,
            paths=on.paths,
            monitors=on.monitors,
            teardown=teardown,
            cgroups=on.cgroups,
            start_timeout_s=config.runtime.start_timeout_s,
            max_parallel=config.runtime.max_parallel_creates
            or CREATES_PER_CORE * len(os.sched_getaffinity(0)),
        ),
        attach_sessions=attach_sessions,
        exits=ExitWatch(on.paths.exits_dir, host=on.host, needs_monitor=attach_sessions.unblock),
        files_limits=FilesLimits(on.cgroups, cgroup_paths),
    )


def _containers(on: Mechanisms, basis: _Basis) -> _Containers:
    exec_processes = ExecProcesses(
        host=on.host,
        paths=on.paths,
        runtime_of=on.handlers.get,
        reaper=on.reaper,
        files_limits=basis.files_limits,
        pids_of=lambda container: on.cgroups.pids(basis.cgroup_paths.directory_of(container)),
    )
    creation = Creation(
        host=on.host,
        paths=on.paths,
        store=on.containers,
        images=on.images,
        runtime_of=on.handlers.get,
        launcher=basis.launcher,
        specs=basis.container_specs,
        limits=basis.limits,
        cgroup_paths=basis.cgroup_paths,
        teardown=basis.teardown,
        exits=basis.exits,
        boot_id=on.boot_id,
    )
    exit_handling = ExitHandling(
        host=on.host,
        paths=on.paths,
        store=on.containers,
        sandboxes=on.sandboxes,
        runtime_of=on.handlers.get,
        cgroups=on.cgroups,
        cgroup_paths=basis.cgroup_paths,
        teardown=basis.teardown,
        exits=basis.exits,
        background=on.background,
        operations=on.operations,
    )
    removal = ContainerRemoval(
        paths=on.paths,
        store=on.containers,
        images=on.images,
        exits=basis.exits,
        exit_handling=exit_handling,
        teardown=basis.teardown,
    )
    return _Containers(exec_processes, creation, exit_handling, removal)


def _container_service(
    config: Config, on: Mechanisms, basis: _Basis, parts: _Containers
) -> Containers:
    return Containers(
        paths=on.paths,
        store=on.containers,
        sandboxes=on.sandboxes,
        creation=parts.creation,
        exit_handling=parts.exit_handling,
        removal=parts.removal,
        resources=ContainerResources(
            host=on.host,
            paths=on.paths,
            store=on.containers,
            runtime_of=on.handlers.get,
            limits=basis.limits,
            cgroups=on.cgroups,
            cgroup_paths=basis.cgroup_paths,
            files_limits=basis.files_limits,
        ),
        runtime_of=on.handlers.get,
        monitors=on.monitors,
        execs=Execs(
            parts.exec_processes,
            background=on.background,
            max_output_bytes=config.limits.exec_sync_output_bytes,
            max_answer_bytes=config.limits.grpc_message_bytes - ANSWER_HEADROOM_BYTES,
        ),
        cgroup_paths=basis.cgroup_paths,
        attach_sessions=basis.attach_sessions,
        operations=on.operations,
    )


def _pods(
    config: Config, on: Mechanisms, basis: _Basis, networks: Networks, containers: Containers
) -> Pods:
    files = PodFiles(on.host, on.paths, on.host_etc)
    return Pods(
        host=on.host,
        paths=on.paths,
        store=on.sandboxes,
        containers=containers,
        runtime_of=on.handlers.get,
        pause=PauseContainers(
            paths=on.paths,
            files=files,
            specs=basis.sandbox_specs,
            cgroup_paths=basis.cgroup_paths,
            launcher=basis.launcher,
        ),
        network=networks.network,
        files=files,
        pause_image=PauseImage(on.images, config.sandbox.image, on.puller.pull),
        specs=basis.sandbox_specs,
        cgroup_paths=basis.cgroup_paths,
        teardown=basis.teardown,
        exits=basis.exits,
        reaper=on.reaper,
        operations=on.operations,
        boot_id=on.boot_id,
    )


def _recovery(
    on: Mechanisms,
    basis: _Basis,
    parts: _Containers,
    containers: Containers,
    pods: Pods,
    orphans: Orphans,
) -> Recovery:
    return Recovery(
        host=on.host,
        paths=on.paths,
        sandboxes=on.sandboxes,
        containers=on.containers,
        pods=pods,
        container_service=containers,
        creation=parts.creation,
        exit_handling=parts.exit_handling,
        orphans=orphans,
        unfinished=Unfinished(on.background, on.operations),
        runtimes=lambda: on.handlers.runtimes,
        cgroups=on.cgroups,
        cgroup_paths=basis.cgroup_paths,
        teardown=basis.teardown,
        exits=basis.exits,
        background=on.background,
        operations=on.operations,
        boot_id=on.boot_id,
    )


def _wipe(
    on: Mechanisms,
    basis: _Basis,
    networks: Networks,
    parts: _Containers,
    containers: Containers,
    pods: Pods,
    orphans: Orphans,
) -> Wipe:
    return Wipe(
        sandboxes=on.sandboxes,
        containers=on.containers,
        pods=pods,
        container_service=containers,
        removal=parts.removal,
        orphans=orphans,
        network=networks.network,
        pending_deletes=networks.pending_deletes,
        reconciler=networks.reconciler,
        cgroups=on.cgroups,
        own_cgroup=basis.cgroup_paths.own_directory,
        images=on.images,
        puller=on.puller,
    )
