"""ListPodSandboxMetrics on real parts: values beside a load of known size."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import Pod, cgroups_of, wait_until
from tests.integration.test_stats import burn_cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.harness.client import Client

pytestmark = pytest.mark.integration

MIB = 1 << 20
NOT_ON_EVERY_NODE = {
    *("container_hugetlb_usage_bytes", "container_hugetlb_max_usage_bytes"),
    *(
        f"container_pressure_{what}_{how}_seconds_total"
        for what in ("cpu", "io", "memory")
        for how in ("stalled", "waiting")
    ),
    # Only once the container has touched a disk.
    *(
        "container_blkio_device_usage_total",
        "container_fs_reads_total",
        "container_fs_writes_total",
    ),
    *("container_fs_reads_bytes_total", "container_fs_writes_bytes_total"),
}


def descriptors(client: Client) -> dict[str, api.MetricDescriptor]:
    request = api.ListMetricDescriptorsRequest()
    answer = client.runtime.ListMetricDescriptors(request, timeout=10)
    return {each.name: each for each in answer.descriptors}


def metrics_of(client: Client, pod: str) -> api.PodSandboxMetrics:
    request = api.ListPodSandboxMetricsRequest()
    answer = client.runtime.ListPodSandboxMetrics(request, timeout=10)
    (found,) = [each for each in answer.pod_metrics if each.pod_sandbox_id == pod]
    return found


def values(metrics: Iterable[api.Metric], name: str) -> dict[tuple[str, ...], int]:
    """The samples of one metric, by the labels that come after those of every metric."""
    return {
        tuple(each.label_values[5:]): each.value.value
        for each in metrics
        if each.name == f"container_{name}"
    }


def value(client: Client, pod: Pod, name: str) -> int:
    """The sum of one metric over the samples of the pod's only container."""
    (container,) = metrics_of(client, pod.id).container_metrics
    return sum(values(container.metrics, name).values())


def test_every_metric_has_a_sample_with_its_labels(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container(name="worker")
    config.linux.resources.cpu_period, config.linux.resources.cpu_quota = 100_000, 20_000
    config.linux.resources.memory_limit_in_bytes = 64 * MIB
    container = pod.sleeper(config)
    known = descriptors(client)
    assert len(known) == 56
    assert all(each.help for each in known.values())
    before = time.time_ns()
    found = metrics_of(client, pod.id)
    (of_container,) = found.container_metrics
    assert of_container.container_id == container
    seen = {each.name for each in (*found.metrics, *of_container.metrics)}
    assert known.keys() - NOT_ON_EVERY_NODE <= seen <= known.keys()
    of = pod.config.metadata
    for metrics, base in (
        (found.metrics, [pod.id, "", of.namespace, of.name, "POD"]),
        (of_container.metrics, [container, image, of.namespace, of.name, "worker"]),
    ):
        for each in metrics:
            assert each.label_values[:5] == base
            assert len(each.label_values) == len(known[each.name].label_keys)
            assert before <= each.timestamp <= time.time_ns()
            is_counter = each.name.endswith("_total") and "inodes" not in each.name
            is_counter |= each.name == "container_memory_failcnt"
            assert each.metric_type == (api.COUNTER if is_counter else api.GAUGE)


def test_specification_is_that_of_the_request(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    resources = config.linux.resources
    resources.cpu_period, resources.cpu_quota, resources.cpu_shares = 50_000, 20_000, 2
    resources.memory_limit_in_bytes = 64 * MIB
    container = pod.sleeper(config)
    expected = {"cpu_period": 50_000, "cpu_quota": 20_000, "cpu_shares": 2}
    expected["memory_limit_bytes"] = 64 * MIB
    expected["memory_reservation_limit_bytes"] = 0
    assert {name: value(client, pod, f"spec_{name}") for name in expected} == expected
    started = client.status(container).status.started_at
    assert value(client, pod, "start_time_seconds") == started // 1_000_000_000
    assert abs(value(client, pod, "last_seen") - time.time()) < 5


def test_load_of_known_size_is_what_is_counted(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    before = value(client, pod, "cpu_usage_seconds_total")
    burn_cpu_seconds(client, container, 2)
    assert 1 <= value(client, pod, "cpu_usage_seconds_total") - before <= 3
    assert 1 <= value(client, pod, "cpu_user_seconds_total") <= 3
    cache = value(client, pod, "memory_cache")
    pod.asks(container, "dd if=/dev/zero of=/dev/shm/file bs=1M count=24 2>&1")
    assert 23 * MIB <= value(client, pod, "memory_cache") - cache < 32 * MIB
    assert value(client, pod, "memory_max_usage_bytes") >= 24 * MIB
    used = value(client, pod, "fs_usage_bytes")
    pod.asks(container, "dd if=/dev/zero of=/file bs=1M count=4 2>&1")
    assert 4 * MIB <= value(client, pod, "fs_usage_bytes") - used < 5 * MIB
    faults = values(
        metrics_of(client, pod.id).container_metrics[0].metrics, "memory_failures_total"
    )
    assert faults["pgfault", "container"] > 0
    assert len(faults) == 4


def test_bytes_written_to_the_disk_are_those_of_its_device(client: Client, image: str) -> None:
    """As far as the kernel counts: with v1 some count no disk at all."""
    pod = Pod.run(client, image)
    container = pod.sleeper()
    pod.asks(container, "dd if=/dev/zero of=/file bs=1M count=8 oflag=direct conv=fsync 2>&1")
    counted = {
        word
        for cgroup in cgroups_of(container)
        for name in ("io.stat", "blkio.throttle.io_service_bytes_recursive")
        if (cgroup / name).exists()
        for word in (cgroup / name).read_text().split()
        if re.fullmatch(r"\d+:\d+", word)
    }
    (found,) = metrics_of(client, pod.id).container_metrics
    by_operation = values(found.metrics, "blkio_device_usage_total")
    assert {f"{major}:{minor}" for _, major, minor, _ in by_operation} == counted
    if counted:
        wait_until(lambda: 8 * MIB <= value(client, pod, "fs_writes_bytes_total") < 32 * MIB)
        assert value(client, pod, "fs_writes_total") >= 8


def test_processes_files_and_sockets_are_those_of_the_container(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    pod.start(pod.container("sh", "-c", "sleep 3600 & sleep 3600 & exec httpd -f -p 8080"))
    wait_until(lambda: value(client, pod, "processes") == 3)
    wait_until(lambda: value(client, pod, "sockets") == 1)
    assert 9 <= value(client, pod, "file_descriptors") <= 16
    assert value(client, pod, "threads") == 3
    limit = int(pod.asks(metrics_of(client, pod.id).container_metrics[0].container_id, "ulimit -n"))
    assert value(client, pod, "ulimits_soft") == limit


def test_what_passes_the_network_is_the_pods(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    pod.asks(
        container, f"ping -c 3 -i 0.2 -s 1000 {pod.ip} || true; nslookup x 192.0.2.1 & sleep 0.5"
    )
    metrics = metrics_of(client, pod.id).metrics
    received = values(metrics, "network_receive_bytes_total")
    assert received.keys() == {("eth0",)}
    packets = values(metrics, "network_transmit_packets_total")
    assert packets["eth0",] > 0
    streamed = client.runtime.StreamPodSandboxMetrics(
        api.StreamPodSandboxMetricsRequest(), timeout=10
    )
    assert [each.pod_sandbox_id for piece in streamed for each in piece.pod_sandbox_metrics] == [
        pod.id
    ]


def test_metrics_of_pods_on_the_hosts_network_have_no_interfaces(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image, client.pod_config(host_network=True))
    pod.sleeper()
    found = metrics_of(client, pod.id)
    assert not found.metrics
    assert found.container_metrics
