"""UpdateContainerResources on real cgroups: what changes, what stays, what is told, and what can't be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import (
    Pod,
    cgroups_of,
    container_info,
    refused,
    shares_as_weight,
    wait_until,
)

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

MIB = 1 << 20
V1 = {
    "memory": "memory.limit_in_bytes",
    "quota": "cpu.cfs_quota_us",
    "period": "cpu.cfs_period_us",
    "shares": "cpu.shares",
    "cpus": "cpuset.cpus",
    "pids": "pids.max",
}
V2 = {"memory": "memory.max", "shares": "cpu.weight", "cpus": "cpuset.cpus", "pids": "pids.max"}


def limits(container: str) -> dict[str, str]:
    """What stands in the container's cgroups, in v1's words but for the shares, which v2 has as a weight."""
    found = {
        name: (cgroup / file).read_text().strip()
        for cgroup in cgroups_of(container)
        for name, file in (V2 if (cgroup / "cgroup.controllers").exists() else V1).items()
        if (cgroup / file).exists()
    }
    for cgroup in cgroups_of(container):
        if (cgroup / "cpu.max").exists():
            quota, found["period"] = (cgroup / "cpu.max").read_text().split()
            found["quota"] = "-1" if quota == "max" else quota
    return found


def shares(number: int) -> set[str]:
    """What `limits` may tell of so many CPU shares."""
    return {str(number)} | shares_as_weight(number)


def update(
    client: Client, container: str, annotations: dict[str, str] | None = None, **fields: object
) -> None:
    request = api.UpdateContainerResourcesRequest(
        container_id=container,
        linux=api.LinuxContainerResources(**fields),  # type: ignore[arg-type]
        annotations=annotations or {},
    )
    client.runtime.UpdateContainerResources(request, timeout=20)


def test_limits_change_where_they_are_set_and_are_told(
    client: Client, image: str, crash_daemon: Daemon
) -> None:
    client = crash_daemon.client
    pod = Pod.run(client, image)
    config = pod.container("sleep", "3600")
    config.linux.resources.CopyFrom(
        api.LinuxContainerResources(
            memory_limit_in_bytes=64 * MIB, cpu_period=100_000, cpu_quota=50_000, oom_score_adj=500
        )
    )
    config.annotations["cgroup.pids.max"] = "50"
    created = pod.create(config)

    # Created: the CPU manager sends CPUs alone.
    update(client, created, cpuset_cpus="0", oom_score_adj=-900)
    assert limits(created) | {"shares": ""} == {
        "memory": str(64 * MIB),
        "quota": "50000",
        "period": "100000",
        "shares": "",
        "cpus": "0",
        "pids": "50",
    }

    # Running: some more, some less, some none.
    client.start(created)
    update(
        client,
        created,
        {"cgroup.pids.max": "60"},
        memory_limit_in_bytes=96 * MIB,
        cpu_quota=-1,
        cpu_shares=2048,
    )
    found = limits(created)
    assert (found["memory"], found["quota"]) == (str(96 * MIB), "-1")
    assert found["shares"] in shares(2048)
    assert (found["cpus"], found["pids"]) == ("0", "60")

    # Told, also by the next daemon; and an update after it starts from there.
    crash_daemon.restart()
    told = client.status(created).status.resources.linux
    assert told == api.LinuxContainerResources(
        memory_limit_in_bytes=96 * MIB,
        cpu_period=100_000,
        cpu_quota=-1,
        cpu_shares=2048,
        cpuset_cpus="0",
        oom_score_adj=500,
    )
    update(client, created, cpu_shares=512)
    changed = limits(created)
    assert changed["shares"] in shares(512)
    assert changed | {"shares": ""} == found | {"shares": ""}

    # Exited: remembered.
    client.stop(created)
    update(client, created, cpu_shares=256)
    assert client.status(created).status.resources.linux.cpu_shares == 256


def memory_and_swap(container: str) -> tuple[int, int | None]:
    """The limits of memory, and of memory and swap together; None where this kernel does not account swap."""
    memory = int(limits(container)["memory"])
    for cgroup in cgroups_of(container):
        if (file := cgroup / "memory.memsw.limit_in_bytes").exists():
            return memory, int(file.read_text())
        if (file := cgroup / "memory.swap.max").exists():
            return memory, memory + int(file.read_text())
    return memory, None


def test_limit_of_memory_changes_alone_whatever_the_limit_of_swap(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("sleep", "3600")
    config.linux.resources.memory_limit_in_bytes = 64 * MIB
    config.linux.resources.memory_swap_limit_in_bytes = 96 * MIB
    container = pod.start(config)
    for memory, both in ((128, 128), (192, 192), (48, 48)):
        update(client, container, memory_limit_in_bytes=memory * MIB)
        assert memory_and_swap(container) in ((memory * MIB, both * MIB), (memory * MIB, None))
    update(client, container, memory_swap_limit_in_bytes=100 * MIB)
    for memory in (32, 80):
        update(client, container, memory_limit_in_bytes=memory * MIB)
        assert memory_and_swap(container) in ((memory * MIB, 100 * MIB), (memory * MIB, None))
    told = client.status(container).status.resources.linux
    assert told.memory_swap_limit_in_bytes == 100 * MIB

    # Both at once, in whichever order the kernel needs.
    for memory, both in ((200, 300), (40, 50), (150, 150)):
        update(
            client,
            container,
            memory_limit_in_bytes=memory * MIB,
            memory_swap_limit_in_bytes=both * MIB,
        )
        assert memory_and_swap(container) in ((memory * MIB, both * MIB), (memory * MIB, None))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "memory_swap_limit_in_bytes", str(100 * MIB)):
        update(client, container, memory_swap_limit_in_bytes=100 * MIB)


def test_memory_in_use_is_not_taken_away(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container(
        "sh", "-c", "head -c 40000000 /dev/zero >/dev/shm/file; touch /full; sleep 3600"
    )
    config.linux.resources.memory_limit_in_bytes = 128 * MIB
    container = pod.start(config)
    wait_until(lambda: client.exec(container, "test", "-e", "/full").exit_code == 0)
    with refused(
        grpc.StatusCode.FAILED_PRECONDITION, "memory_limit_in_bytes", str(8 * MIB), "in use"
    ):
        update(client, container, memory_limit_in_bytes=8 * MIB)
    assert client.status(container).status.state == api.CONTAINER_RUNNING
    told = client.status(container).status.resources.linux.memory_limit_in_bytes
    assert told == 128 * MIB
    assert container_info(client, container)["resourcesUpdate"] == {}


def test_what_can_not_be_is_refused_by_its_field(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    before = limits(container)
    for fields, word in (
        ({"cpu_period": 5}, "cpu_period"),
        ({"cpuset_cpus": "all"}, "cpuset_cpus"),
        ({"memory_limit_in_bytes": -7}, "memory_limit_in_bytes"),
        ({"oom_score_adj": 5000}, "oom_score_adj"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, word):
            update(client, container, **fields)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "windows"):
        request = api.UpdateContainerResourcesRequest(container_id=container)
        request.windows.SetInParent()
        client.runtime.UpdateContainerResources(request, timeout=20)
    with refused(grpc.StatusCode.NOT_FOUND):
        update(client, "0" * 64, cpu_shares=2)
    assert limits(container) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpuset_cpus", "4095"),
        ("cpuset_cpus", "0-4095"),
        ("cpuset_mems", "1023"),
        ("cpu_quota", 1 << 50),
    ],
)
def test_limit_that_this_node_can_not_have_is_refused_by_its_field(
    client: Client, image: str, field: str, value: object
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("sleep", "3600")
    setattr(config.linux.resources, field, value)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field):
        pod.create(config)
    container = pod.sleeper()
    resources = api.LinuxContainerResources()
    setattr(resources, field, value)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field):
        client.runtime.UpdateContainerResources(
            api.UpdateContainerResourcesRequest(container_id=container, linux=resources), timeout=20
        )
    assert client.status(container).status.state == api.CONTAINER_RUNNING
