"""Makes the objects that measure what pods and containers use, over the same mechanisms as the sandbox layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cri_shim.sandbox.cpu_rates import CpuRates
from cri_shim.sandbox.layer_usage import LayerUsages
from cri_shim.sandbox.pod_metrics import PodMetrics
from cri_shim.sandbox.pod_stats import PodStats
from cri_shim.sandbox.runtime_usage import RuntimeUsages
from cri_shim.sandbox.stats import Stats

if TYPE_CHECKING:
    from cri_shim.config import Config
    from cri_shim.daemon.mechanisms import Mechanisms
    from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths


class Statistics(NamedTuple):
    """The objects, not yet asked for anything: none of them works before."""

    stats: Stats
    pod_stats: PodStats
    pod_metrics: PodMetrics


def build_statistics(config: Config, on: Mechanisms, cgroup_paths: CgroupPaths) -> Statistics:
    """Make the objects. Nothing is started, and no file is read."""
    rates = CpuRates(on.cgroups.cpu_usage_ns, on.background)
    layers = LayerUsages(
        on.containers,
        lambda object_id: on.paths.container(object_id).upper_dir,
        on.background,
        cache_s=config.stats.cache_s,
        disk_usage=on.host.disk_usage,
    )
    stats = Stats(
        paths=on.paths,
        store=on.containers,
        cgroups=on.cgroups,
        cgroup_paths=cgroup_paths,
        rates=rates,
        layers=layers,
        inside=RuntimeUsages(
            on.containers, on.handlers.get, on.background, cache_s=config.stats.cache_s
        ),
    )
    pod_stats = PodStats(
        host=on.host,
        sandboxes=on.sandboxes,
        containers=on.containers,
        stats=stats,
        cgroups=on.cgroups,
        cgroup_paths=cgroup_paths,
        rates=rates,
        runtime_of=on.handlers.get,
    )
    pod_metrics = PodMetrics(
        host=on.host,
        containers=on.containers,
        stats=stats,
        cgroups=on.cgroups,
        cgroup_paths=cgroup_paths,
        layers_dir=on.paths.root,
        groups=config.stats.metrics,
    )
    return Statistics(stats, pod_stats, pod_metrics)
