"""PodSandboxStats on real parts: numbers beside a load of known size."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import Pod, cgroups_of, refused, wait_until
from tests.integration.test_stats import burn_cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client

pytestmark = pytest.mark.integration

MIB = 1 << 20
SECOND = 1_000_000_000


def stats_of(client: Client, pod: str) -> api.PodSandboxStats:
    request = api.PodSandboxStatsRequest(pod_sandbox_id=pod)
    return client.runtime.PodSandboxStats(request, timeout=10).stats


def linux_of(client: Client, pod: str) -> api.LinuxPodSandboxStats:
    return stats_of(client, pod).linux


def listed(client: Client, filter_: api.PodSandboxStatsFilter | None = None) -> list[str]:
    request = api.ListPodSandboxStatsRequest(filter=filter_)
    answer = client.runtime.ListPodSandboxStats(request, timeout=10)
    return [stats.attributes.id for stats in answer.stats]


@pytest.fixture
def own_cgroup(client: Client, image: str) -> Iterator[Pod]:
    """A pod in a cgroup of its own, as kubelets make one for each."""
    config = client.pod_config()
    config.linux.cgroup_parent += f"/{config.metadata.name}"
    pod = Pod.run(client, image, config)
    yield pod
    parents = {cgroup.parent for cgroup in cgroups_of(pod.id)}
    client.remove_pod(pod.id)
    for each in parents:  # made by whoever names it, so nobody else takes it away
        each.rmdir()


@pytest.fixture(params=["own cgroup", "shared cgroup"])
def pod(request: pytest.FixtureRequest, client: Client, image: str) -> Pod:
    if request.param == "own cgroup":
        pod: Pod = request.getfixturevalue("own_cgroup")
        return pod
    neighbour = Pod.run(client, image)
    neighbour.sleeper()
    return Pod.run(client, image)


def test_stats_say_whose_they_are_and_when_they_were_read(client: Client, pod: Pod) -> None:
    container = pod.sleeper(pod.container(name="worker"))
    before = time.time_ns()
    stats = stats_of(client, pod.id)
    assert stats.attributes.id == pod.id
    assert stats.attributes.metadata == pod.config.metadata
    assert dict(stats.attributes.labels) == dict(pod.config.labels)
    linux = stats.linux
    assert [each.attributes.id for each in linux.containers] == [container]
    assert linux.containers[0].attributes.metadata.name == "worker"
    parts = (linux.cpu, linux.memory, linux.network, linux.process, linux.containers[0].cpu)
    assert all(before <= each <= time.time_ns() for each in [part.timestamp for part in parts])
    for part in (linux.cpu, linux.memory):  # where the kernel counts pressure
        assert not part.HasField("psi") or part.psi.HasField("Some")


def test_cpu_seconds_that_were_burnt_are_counted_once(client: Client, pod: Pod) -> None:
    container = pod.sleeper()
    before = linux_of(client, pod.id)
    burn_cpu_seconds(client, container, 2)
    after = linux_of(client, pod.id)

    def spent(earlier: api.CpuUsage, later: api.CpuUsage) -> int:
        return later.usage_core_nano_seconds.value - earlier.usage_core_nano_seconds.value

    assert 1.6 * SECOND < spent(before.cpu, after.cpu) < 3 * SECOND
    inside = spent(before.containers[0].cpu, after.containers[0].cpu)
    assert 1.6 * SECOND < inside <= spent(before.cpu, after.cpu)
    wait_until(lambda: linux_of(client, pod.id).cpu.HasField("usage_nano_cores"))


def test_bytes_that_were_allocated_are_the_pods_memory(client: Client, pod: Pod) -> None:
    container = pod.sleeper()
    before = linux_of(client, pod.id).memory
    pod.asks(container, "dd if=/dev/zero of=/dev/shm/file bs=1M count=24 2>&1")
    after = linux_of(client, pod.id).memory
    for name in ("usage_bytes", "working_set_bytes"):
        grown = getattr(after, name).value - getattr(before, name).value
        assert 24 * MIB <= grown + MIB < 32 * MIB, name
    assert after.page_faults.value > before.page_faults.value
    script = "x=$(head -c 12582912 /dev/zero | tr '\\0' a); sleep 60; echo ${#x}"
    pod.start(pod.container("sh", "-c", script))
    wait_until(lambda: linux_of(client, pod.id).memory.rss_bytes.value >= 12 * MIB)


def test_bytes_that_were_sent_are_those_of_the_default_interface(
    client: Client, image: str
) -> None:
    server, reader = Pod.run(client, image), Pod.run(client, image)
    script = "dd if=/dev/zero of=/file bs=1M count=8 2>&1; exec httpd -f -p 8080 -h /"
    server.start(server.container("sh", "-c", script))
    container = reader.sleeper()
    fetch = f"until wget -q -O /copy http://{server.ip}:8080/file; do sleep 0.1; done; wc -c </copy"
    pods = (server.id, reader.id)
    before = [linux_of(client, pod).network for pod in pods]
    assert int(reader.asks(container, fetch)) == 8 * MIB
    after = [linux_of(client, pod).network for pod in pods]
    assert {network.default_interface.name for network in after} == {"eth0"}
    sent, received = (
        getattr(later.default_interface, name).value
        - getattr(earlier.default_interface, name).value
        for earlier, later, name in zip(before, after, ("tx_bytes", "rx_bytes"), strict=True)
    )
    assert 8 * MIB <= sent < 9 * MIB
    assert 8 * MIB <= received < 9 * MIB


def test_no_interface_is_listed_twice_and_loopback_not_at_all(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    network = linux_of(client, pod.id).network
    names = [network.default_interface.name, *(each.name for each in network.interfaces)]
    assert names == ["eth0"]


def test_pod_on_the_hosts_network_has_none_of_its_own(client: Client, image: str) -> None:
    pod = Pod.run(client, image, client.pod_config(host_network=True))
    linux = linux_of(client, pod.id)
    assert not linux.HasField("network")
    assert linux.cpu.HasField("usage_core_nano_seconds")


def test_stopped_pause_process_delays_no_statistics(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    info = json.loads(client.pod_status(pod.id, verbose=True).info["info"])
    os.kill(info["pid"], signal.SIGSTOP)
    assert linux_of(client, pod.id).network.default_interface.name == "eth0"
    os.kill(info["pid"], signal.SIGCONT)


def test_processes_of_all_containers_and_the_pause_process_count(client: Client, pod: Pod) -> None:
    pod.sleeper()
    pod.start(pod.container("sh", "-c", "sleep 3600 & sleep 3600 & wait"))
    wait_until(lambda: linux_of(client, pod.id).process.process_count.value == 5)


def test_list_has_the_ready_pods_that_the_filter_lets_through(client: Client, image: str) -> None:
    config = client.pod_config()
    config.labels["app"] = "web"
    web, other, stopped = (
        Pod.run(client, image, config),
        Pod.run(client, image),
        Pod.run(client, image),
    )
    exited = other.ends(other.container("true")).id
    client.stop_pod(stopped.id)
    assert listed(client) == [web.id, other.id]
    assert listed(client, api.PodSandboxStatsFilter(id=other.id[:12])) == [other.id]
    assert listed(client, api.PodSandboxStatsFilter(label_selector={"app": "web"})) == [web.id]
    [container] = linux_of(client, other.id).containers
    assert container.attributes.id == exited
    assert not container.HasField("cpu")
    streamed = client.runtime.StreamPodSandboxStats(api.StreamPodSandboxStatsRequest(), timeout=10)
    assert [each.attributes.id for piece in streamed for each in piece.pod_sandbox_stats] == [
        web.id,
        other.id,
    ]
    with refused(grpc.StatusCode.FAILED_PRECONDITION, stopped.id):
        stats_of(client, stopped.id)
    with refused(grpc.StatusCode.NOT_FOUND, "0" * 64):
        stats_of(client, "0" * 64)


def test_lists_do_not_fail_while_pods_come_and_go(client: Client, image: str) -> None:
    stays = Pod.run(client, image)
    stays.sleeper()
    for _ in range(3):
        pod = Pod.run(client, image)
        pod.sleeper()
        asked = [
            client.runtime.ListPodSandboxStats.future(api.ListPodSandboxStatsRequest(), timeout=20)
            for _ in range(5)
        ]
        client.remove_pod(pod.id)
        for answer in asked:
            assert stays.id in [stats.attributes.id for stats in answer.result().stats]


def test_a_pods_cgroup_is_the_one_that_its_client_has_made(client: Client, own_cgroup: Pod) -> None:
    """What the pod's cgroup counts is what the files of that cgroup say."""
    own_cgroup.sleeper()
    parents = {cgroup.parent for cgroup in cgroups_of(own_cgroup.id)}
    files = [
        file
        for parent in parents
        for name in ("memory.usage_in_bytes", "memory.current")
        if (file := parent / name).exists()
    ]
    usage = linux_of(client, own_cgroup.id).memory.usage_bytes.value
    [file] = files
    assert abs(int(Path(file).read_text()) - usage) < MIB
