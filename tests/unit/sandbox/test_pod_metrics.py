"""What is read for metrics: of running containers of ready pods, and only what the chosen groups need."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.config.metric_groups import MetricGroup
from cri_shim.host.cgroups.counters import CgroupCounters, DeviceIo
from cri_shim.sandbox.pod_metrics import PodMetrics
from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
from tests.unit.sandbox.test_pod_stats import EXITED, Node

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.sandbox.cri_metrics.readings import PodReading
    from cri_shim.sandbox.store.store import Sandbox

pytestmark = pytest.mark.asyncio
EVERY_GROUP = {MetricGroup(name) for name in MetricGroup.__members__.values()}


class MeteredNode(Node):
    """A node with metrics of these groups."""

    def __init__(self, base: Path, groups: Collection[MetricGroup]) -> None:
        super().__init__(base)
        self.metrics = PodMetrics(
            host=cast("Host", self.kernel),
            containers=self.containers,
            stats=self.container_stats,
            cgroups=cast("Cgroups", self.kernel.cgroups),
            cgroup_paths=CgroupPaths(systemd=False, default_parent=""),
            layers_dir=base,
            groups=groups,
        )

    async def read_metrics(self, *pods: Sandbox) -> list[PodReading]:
        return await self.metrics.pod_sandbox_metrics(pods)


async def test_running_containers_of_ready_pods_are_read(tmp_path: Path) -> None:
    node = MeteredNode(tmp_path, EVERY_GROUP)
    pod, stopped = node.pod("a"), node.pod("b")
    container = node.container(pod, "c")
    node.container(pod, "d", EXITED)
    node.sandboxes.note(stopped, stopped.status.stopped(9, "it ended"))
    directory = f"cri-shim/{container.id}"
    node.kernel.spawn(cgroup=directory)
    node.kernel.cgroups.counters[directory] = CgroupCounters(
        {"peak": 5}, {(254, 1): DeviceIo(1), (0, 9): DeviceIo(2)}
    )
    [reading] = await node.read_metrics(pod, stopped)
    assert reading.sandbox is pod
    assert [each.name for each in reading.interfaces] == ["net5", "eth0"]
    [of_container] = reading.containers
    assert of_container.container is container
    assert of_container.usage.cpu_usage_ns == 100
    assert of_container.counters.numbers == {"peak": 5}
    assert of_container.device_paths == {(254, 1): "/dev/vdb", (0, 9): ""}
    assert of_container.processes is not None
    assert of_container.processes.processes == 1
    assert of_container.file_system.device == "/dev/vda1"
    assert of_container.layer_bytes is not None


async def test_processes_on_a_kernel_of_their_own_are_not_seen(tmp_path: Path) -> None:
    node = MeteredNode(tmp_path, EVERY_GROUP)
    pod = node.pod("a")
    node.container(pod, "c")
    [reading] = await node.read_metrics(pod)
    assert reading.containers[0].processes is None


async def test_only_what_the_groups_need_is_read(tmp_path: Path) -> None:
    node = MeteredNode(tmp_path, [MetricGroup.PRESSURE])
    pod = node.pod("a")
    container = node.container(pod, "c")
    node.kernel.cgroups.counters[f"cri-shim/{container.id}"] = CgroupCounters({"peak": 5})
    [reading] = await node.read_metrics(pod)
    assert reading.interfaces == []
    [of_container] = reading.containers
    assert of_container.counters == CgroupCounters()
    assert {family.group for family in node.metrics.container_families} == {MetricGroup.PRESSURE}
    assert node.metrics.pod_families == ()


async def test_without_a_group_there_is_no_metric(tmp_path: Path) -> None:
    node = MeteredNode(tmp_path, [])
    assert (node.metrics.container_families, node.metrics.pod_families) == ((), ())


async def test_all_groups_together_are_all_56_metrics(tmp_path: Path) -> None:
    metrics = MeteredNode(tmp_path, EVERY_GROUP).metrics
    assert len(metrics.container_families) + len(metrics.pod_families) == 56


async def test_names_of_devices_are_kept_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = MeteredNode(tmp_path, EVERY_GROUP)
    monkeypatch.setattr("cri_shim.sandbox.pod_metrics.MAX_DEVICES", 2)
    pod = node.pod("a")
    directory = f"cri-shim/{node.container(pod, 'c').id}"
    asked: list[int] = []

    def device_path(major: int, minor: int) -> str:
        asked.append(minor)
        return f"/dev/{minor}"

    monkeypatch.setattr(node.kernel, "device_path", device_path)
    devices = {(1, minor): DeviceIo() for minor in range(3)}
    node.kernel.cgroups.counters[directory] = CgroupCounters({}, devices)
    await node.read_metrics(pod)
    assert asked == [0, 1, 2]
    await node.read_metrics(pod)
    assert asked == [0, 1, 2] * 2
    node.kernel.cgroups.counters[directory] = CgroupCounters({}, {(1, 0): DeviceIo()})
    for _ in range(3):
        await node.read_metrics(pod)
    assert asked == [0, 1, 2] * 2 + [0]
