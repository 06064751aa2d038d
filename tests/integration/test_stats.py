"""ContainerStats on real parts: numbers that follow what the container does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness.slowness import SLOWNESS
from tests.integration.scene import Pod, refused, wait_until

if TYPE_CHECKING:
    from tests.harness.client import Client

pytestmark = pytest.mark.integration

MIB = 1 << 20
SECOND = 1_000_000_000


def stats_of(client: Client, container: str) -> api.ContainerStats:
    request = api.ContainerStatsRequest(container_id=container)
    return client.runtime.ContainerStats(request, timeout=10).stats


def burn_cpu_seconds(client: Client, container: str, seconds: int) -> None:
    """A command of the container ends once it has run for that long, as the scheduler counts, not the ticks."""
    script = (
        f"while read -r ran _ </proc/self/schedstat; do [ $ran -lt {seconds}000000000 ] || exit 7; "
        "i=0; while [ $i -lt 9999 ]; do i=$((i + 1)); done; done"
    )
    answer = client.exec(container, "sh", "-c", script, timeout_s=int(60 * SLOWNESS))
    assert answer.exit_code == 7


def listed(client: Client, filter_: api.ContainerStatsFilter | None = None) -> list[str]:
    request = api.ListContainerStatsRequest(filter=filter_)
    answer = client.runtime.ListContainerStats(request, timeout=10)
    return [stats.attributes.id for stats in answer.stats]


def test_stats_say_whose_they_are_and_when_they_were_read(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container(name="worker")
    config.labels["app"] = "web"
    config.annotations["note"] = "kept"
    container = pod.sleeper(config)
    before = time.time_ns()
    stats = stats_of(client, container)
    assert stats.attributes.id == container
    assert stats.attributes.metadata == config.metadata
    assert dict(stats.attributes.labels) == {"app": "web"}
    assert dict(stats.attributes.annotations) == {"note": "kept"}
    for part in (stats.cpu, stats.memory, stats.writable_layer):
        assert before <= part.timestamp <= time.time_ns()


def test_cpu_time_is_what_was_burnt_and_a_rate_follows(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("sh", "-c", "while :; do :; done")
    config.linux.resources.cpu_period, config.linux.resources.cpu_quota = 100_000, 20_000
    busy, idle, worker = pod.start(config), pod.sleeper(), pod.sleeper()

    def used(container: str) -> int:
        return stats_of(client, container).cpu.usage_core_nano_seconds.value

    before, before_idle = used(worker), used(idle)
    burn_cpu_seconds(client, worker, 2)
    assert 1.6 * SECOND < used(worker) - before < 3 * SECOND
    assert used(idle) - before_idle < 0.1 * SECOND

    def rate(container: str) -> int:
        return stats_of(client, container).cpu.usage_nano_cores.value

    # Others may want the processors as well, but its quota lets it have no more than a fifth of one.
    wait_until(lambda: 0.02 * SECOND < rate(busy) < 0.3 * SECOND)
    assert rate(idle) < 0.02 * SECOND


def test_two_who_ask_at_once_have_the_same_rate(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    busy = pod.start(pod.container("sh", "-c", "while :; do :; done"))
    wait_until(lambda: stats_of(client, busy).cpu.HasField("usage_nano_cores"))
    rates = {stats_of(client, busy).cpu.usage_nano_cores.value for _ in range(20)}
    assert len(rates) <= 2, "a sample may fall between them, but none is theirs"


def test_memory_is_at_least_what_the_container_holds(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    # Not `sleep` last: busybox's shell would become it, and its memory be gone.
    script = "x=$(head -c 25165824 /dev/zero | tr '\\0' a); sleep 60; echo ${#x}"
    config = pod.container("sh", "-c", script)
    config.linux.resources.memory_limit_in_bytes = 256 * MIB
    container = pod.start(config)
    wait_until(lambda: stats_of(client, container).memory.rss_bytes.value >= 24 * MIB)
    memory = stats_of(client, container).memory
    assert memory.usage_bytes.value >= memory.working_set_bytes.value >= 24 * MIB
    assert memory.usage_bytes.value <= 256 * MIB
    assert memory.available_bytes.value == 256 * MIB - memory.working_set_bytes.value
    assert memory.page_faults.value > 0
    assert stats_of(client, pod.sleeper()).memory.usage_bytes.value < 24 * MIB


def test_writable_layer_grows_with_what_is_written(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    before = stats_of(client, container).writable_layer
    pod.asks(container, "dd if=/dev/zero of=/file bs=1M count=4 2>&1; mkdir /d; touch /d/a /d/b")
    after = stats_of(client, container).writable_layer
    assert after.fs_id.mountpoint
    assert 4 * MIB <= after.used_bytes.value - before.used_bytes.value < 5 * MIB
    assert after.inodes_used.value - before.inodes_used.value == 4
    pod.asks(container, "rm -r /file /d")
    assert stats_of(client, container).writable_layer.used_bytes.value < MIB


def test_shared_memory_and_mounts_are_not_the_writable_layers(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    pod.asks(container, "dd if=/dev/zero of=/dev/shm/file bs=1M count=4 2>&1")
    assert stats_of(client, container).writable_layer.used_bytes.value < MIB


def test_container_that_does_not_run_has_a_layer_only(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    status = pod.ends(pod.container("sh", "-c", "dd if=/dev/zero of=/file bs=1M count=2"))
    stats = stats_of(client, status.id)
    assert stats.writable_layer.used_bytes.value >= 2 * MIB
    assert not stats.HasField("cpu")
    assert not stats.HasField("memory")


def test_list_has_every_container_that_the_filter_lets_through(client: Client, image: str) -> None:
    pod, other = Pod.run(client, image), Pod.run(client, image)
    config = pod.container()
    config.labels["app"] = "web"
    web = pod.sleeper(config)
    exited = pod.ends(pod.container("true")).id
    elsewhere = other.sleeper()
    assert listed(client) == [web, exited, elsewhere]
    assert listed(client, api.ContainerStatsFilter(pod_sandbox_id=pod.id)) == [web, exited]
    assert listed(client, api.ContainerStatsFilter(id=elsewhere[:12])) == [elsewhere]
    assert listed(client, api.ContainerStatsFilter(label_selector={"app": "web"})) == [web]


def test_layers_of_containers_count_as_container_file_system(client: Client, image: str) -> None:
    def used() -> int:
        answer = client.images.ImageFsInfo(api.ImageFsInfoRequest(), timeout=10)
        (filesystem,) = answer.container_filesystems
        return filesystem.used_bytes.value

    pod = Pod.run(client, image)
    container = pod.sleeper()
    before = used()
    pod.asks(container, "dd if=/dev/zero of=/file bs=1M count=4 2>&1")
    assert used() - before >= 4 * MIB


def test_unknown_container_is_not_found(client: Client) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "0" * 64):
        stats_of(client, "0" * 64)
