"""Pods on cgroup v2, with each runtime and each cgroup driver: where their processes are, which files bound them, what
is read from there, and that all of it goes.

With the systemd driver, crun puts processes into a cgroup of its own inside the scope: `container`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host import syscalls
from cri_shim.host.inotify import IN_MODIFY
from tests.guest import systemd
from tests.guest.systemd import CGROUP_DIR
from tests.integration.scene import (
    Pod,
    cgroups_of,
    container_info,
    processes_running,
    shares_as_weight,
    unique_seconds,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

MIB = 1 << 20
SECOND = 1_000_000_000
MIB_2 = "hugetlb.2MB.max"


@pytest.fixture
def pod(client: Client, image: str, daemon: Daemon, handler: str) -> Iterator[Pod]:
    """A pod in a cgroup of its own, of a path such as the kubelet sends: all its slices, for the systemd driver."""
    config = client.pod_config()
    if daemon.cgroup_parent.endswith(".slice"):
        unit = f"{daemon.name}-pod{handler}.slice"
        config.linux.cgroup_parent = f"/{systemd.slice_directory(unit)}"
    else:
        unit = ""
        config.linux.cgroup_parent = f"{daemon.cgroup_parent}/pod{handler}"
    yield Pod.run(client, image, config, handler=handler)
    client.remove_all_pods()
    cgroup = CGROUP_DIR / config.linux.cgroup_parent.lstrip("/")
    assert [path for path in cgroup.iterdir() if path.is_dir()] == []
    # The pod's cgroup is the kubelet's, which takes it away at last.
    if unit:
        systemd.stop(unit)
        wait_until(lambda: not cgroup.exists())
    else:
        cgroup.rmdir()


def cgroup_of(pod: Pod, object_id: str) -> Path:
    """Where the cgroup of a sandbox or container is to be."""
    parent = pod.config.linux.cgroup_parent
    name = f"cri-shim-{object_id}.scope" if parent.endswith(".slice") else object_id
    return CGROUP_DIR / parent.lstrip("/") / name


def inner(cgroup: Path) -> Path:
    """Where the processes of a container are."""
    return cgroup / "container" if (cgroup / "container").exists() else cgroup


def scope_of(object_id: str) -> str:
    return f"cri-shim-{object_id}.scope"


def pids_in(cgroup: Path) -> list[int]:
    return [int(line) for line in (inner(cgroup) / "cgroup.procs").read_text().split()]


def pid_of(pod: Pod, container: str) -> int:
    return int(container_info(pod.client, container)["pid"])


def update(pod: Pod, container: str, resources: api.LinuxContainerResources) -> None:
    request = api.UpdateContainerResourcesRequest(container_id=container, linux=resources)
    pod.client.runtime.UpdateContainerResources(request, timeout=300)


def stats_of(pod: Pod, container: str) -> api.ContainerStats:
    request = api.ContainerStatsRequest(container_id=container)
    return pod.client.runtime.ContainerStats(request, timeout=60).stats


def test_runtime_config_and_status_say_which_driver(client: Client, driver: str) -> None:
    answer = client.runtime.RuntimeConfig(api.RuntimeConfigRequest(), timeout=60)
    assert api.CgroupDriver.Name(answer.linux.cgroup_driver).lower() == driver


def test_pod_and_container_live_in_their_own_cgroups_and_leave_none(pod: Pod, driver: str) -> None:
    container = pod.sleeper()
    pid = pid_of(pod, container)
    pause = json.loads(pod.client.pod_status(pod.id, verbose=True).info["info"])["pid"]
    for object_id, process in ((container, pid), (pod.id, pause)):
        cgroup = cgroup_of(pod, object_id)
        assert cgroups_of(object_id) == [cgroup]
        assert pids_in(cgroup) == [process]
        if driver == "systemd":
            shown = systemd.show(scope_of(object_id), "ActiveState", "Slice", "ControlGroup")
            assert shown == {
                "ActiveState": "active",
                "Slice": Path(pod.config.linux.cgroup_parent).name,
                "ControlGroup": f"/{cgroup.relative_to(CGROUP_DIR)}",
            }
        else:
            assert systemd.units(f"*{object_id}*") == []
    # Of the hierarchy it sees its own part, as a root, and can't change it.
    assert pod.asks(container, "cat /proc/self/cgroup") == "0::/\n"
    assert "cgroup2 ro" in pod.asks(container, "grep ' /sys/fs/cgroup ' /proc/mounts")
    its_processes = pod.asks(container, "cat /sys/fs/cgroup/cgroup.procs").split()
    assert len(its_processes) == 2, "sleep and cat"

    assert pod.ends(pod.container("sh", "-c", "exit 7")).exit_code == 7
    pod.client.stop(container)
    pod.client.remove(container)
    pod.client.remove_pod(pod.id)
    assert not cgroups_of(container)
    assert not cgroups_of(pod.id)
    wait_until(lambda: not systemd.units(f"*{container}*", f"*{pod.id}*"))


def test_limits_are_in_the_files_of_the_containers_cgroup(
    pod: Pod, driver: str, handler: str
) -> None:
    config = pod.container()
    limits = config.linux.resources
    limits.memory_limit_in_bytes = 64 * MIB
    limits.memory_swap_limit_in_bytes = 96 * MIB
    limits.cpu_period, limits.cpu_quota, limits.cpu_shares = 50_000, 25_000, 512
    limits.cpuset_cpus, limits.cpuset_mems = "0", "0"
    limits.oom_score_adj = 321
    limits.hugepage_limits.add(page_size="2MB", limit=4 * MIB)
    limits.unified["memory.high"] = str(48 * MIB)
    config.annotations["cri-shim.io/pids-limit"] = "77"
    container = pod.sleeper(config)
    cgroup = cgroup_of(pod, container)

    def assert_bounded() -> None:
        found = {
            name: (inner(cgroup) / name).read_text().strip()
            for name in (
                *("memory.max", "memory.swap.max", "memory.high", "cpu.max", "pids.max"),
                *("cpuset.cpus.effective", "cpuset.mems.effective", MIB_2),
            )
        }
        assert found == {
            "memory.max": str(64 * MIB),
            "memory.swap.max": str(32 * MIB),  # v2 counts swap alone
            "memory.high": str(48 * MIB),
            "cpu.max": "25000 50000",
            "pids.max": "77",
            "cpuset.cpus.effective": "0",
            "cpuset.mems.effective": "0",
            MIB_2: str(4 * MIB),
        }
        assert (cgroup / "cpu.weight").read_text().strip() in shares_as_weight(512)
        assert (cgroup / "memory.max").read_text() == f"{64 * MIB}\n"

    assert_bounded()
    assert Path(f"/proc/{pid_of(pod, container)}/oom_score_adj").read_text() == "321\n"
    if driver == "systemd":
        shown = systemd.show(scope_of(container), "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec")
        assert shown == {
            "MemoryMax": str(64 * MIB),
            "TasksMax": "77",
            "CPUQuotaPerSecUSec": "500ms",
        }
        # systemd writes what it knows again: it must know what we know.
        systemd.systemctl("daemon-reload")
        assert_bounded()


def test_container_without_limits_has_none(pod: Pod) -> None:
    cgroup = cgroup_of(pod, pod.sleeper())
    for directory in {cgroup, inner(cgroup)}:
        for name in ("memory.max", "memory.swap.max", "memory.high"):
            assert (directory / name).read_text() == "max\n", directory / name
        assert (directory / "cpu.max").read_text().split()[0] == "max"


def test_limits_are_changed_while_the_container_runs(pod: Pod, driver: str) -> None:
    config = pod.container()
    config.linux.resources.memory_limit_in_bytes = 64 * MIB
    config.linux.resources.cpu_period, config.linux.resources.cpu_quota = 100_000, 50_000
    container = pod.sleeper(config)
    cgroup = cgroup_of(pod, container)
    update(
        pod,
        container,
        api.LinuxContainerResources(
            memory_limit_in_bytes=128 * MIB,
            cpu_period=100_000,
            cpu_quota=150_000,
            cpu_shares=2048,
            cpuset_cpus="1",
        ),
    )

    def assert_changed() -> None:
        for directory in {cgroup, inner(cgroup)}:
            assert (directory / "memory.max").read_text() == f"{128 * MIB}\n", directory
            assert (directory / "cpu.max").read_text() == "150000 100000\n", directory
        assert (cgroup / "cpu.weight").read_text().strip() in shares_as_weight(2048)
        assert (cgroup / "cpuset.cpus.effective").read_text() == "1\n"

    assert_changed()
    found = pod.client.status(container).status.resources.linux
    assert (found.memory_limit_in_bytes, found.cpu_quota) == (128 * MIB, 150_000)
    if driver == "systemd":
        systemd.systemctl("daemon-reload")
        assert_changed()


def test_statistics_are_those_of_the_cgroup(pod: Pod) -> None:
    config = pod.container(
        "sh", "-c", "x=$(head -c 16777216 /dev/zero | tr '\\0' a); while :; do :; done"
    )
    config.linux.resources.memory_limit_in_bytes = 256 * MIB
    container = pod.start(config)
    cgroup = cgroup_of(pod, container)
    wait_until(lambda: stats_of(pod, container).memory.rss_bytes.value >= 16 * MIB)

    def cpu_ns() -> int:
        lines = (cgroup / "cpu.stat").read_text().splitlines()
        return 1000 * int(dict(line.split() for line in lines)["usage_usec"])

    before_ns, first = cpu_ns(), stats_of(pod, container)
    time.sleep(1)
    second, after_ns = stats_of(pod, container), cpu_ns()
    assert before_ns <= first.cpu.usage_core_nano_seconds.value
    assert first.cpu.usage_core_nano_seconds.value < second.cpu.usage_core_nano_seconds.value
    assert second.cpu.usage_core_nano_seconds.value <= after_ns
    memory = second.memory
    assert 16 * MIB <= memory.working_set_bytes.value <= memory.usage_bytes.value <= 256 * MIB
    assert memory.usage_bytes.value == pytest.approx(
        int((cgroup / "memory.current").read_text()), abs=4 * MIB
    )
    assert memory.available_bytes.value == 256 * MIB - memory.working_set_bytes.value
    assert memory.page_faults.value > 0
    assert second.swap.swap_usage_bytes.value == 0


def test_kernels_oom_kill_is_the_reason_of_the_exit(pod: Pod) -> None:
    config = pod.container("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
    config.linux.resources.memory_limit_in_bytes = 32 * MIB
    status = pod.ends(config)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    config = pod.container("sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; exit 3")
    config.linux.resources.memory_limit_in_bytes = 32 * MIB
    status = pod.ends(config)
    assert (status.exit_code, status.reason) == (3, "Error")


@contextmanager
def running_exec(pod: Pod, container: str) -> Iterator[int]:
    """A command that runs beside the container's own; its pid."""
    seconds = unique_seconds()
    thread = threading.Thread(
        target=lambda: pod.client.exec(container, "sleep", seconds, timeout_s=60), daemon=True
    )
    thread.start()
    wait_until(lambda: Path(f"/proc/{(processes_running(seconds) or [0])[-1]}/exe").exists())
    yield processes_running(seconds)[-1]
    thread.join()


def test_exec_is_in_the_containers_cgroup(pod: Pod) -> None:
    config = pod.container()
    config.linux.resources.memory_limit_in_bytes = 64 * MIB
    container = pod.sleeper(config)
    cgroup = cgroup_of(pod, container)
    with running_exec(pod, container) as pid:
        found = Path(f"/proc/{pid}/cgroup").read_text()
        assert found == f"0::/{inner(cgroup).relative_to(CGROUP_DIR)}\n"
        assert pid in pids_in(cgroup)
        os.kill(pid, 9)


def test_stopping_kills_all_of_the_cgroup_at_once_and_what_is_below_it(pod: Pod) -> None:
    container = pod.sleeper()
    cgroup = cgroup_of(pod, container)
    seconds = unique_seconds()
    pod.asks(container, f"setsid sleep {seconds} </dev/null >/dev/null 2>&1 & sleep 0.5")
    (straggler,) = processes_running(seconds)
    # As a container that manages cgroups of its own would have it; and paused, which holds no SIGKILL back on v2.
    below = inner(cgroup) / "below"
    below.mkdir()
    (below / "cgroup.procs").write_text(str(straggler))
    (cgroup / "cgroup.freeze").write_text("1")
    inotify = syscalls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        syscalls.inotify_add_watch(inotify, cgroup / "cgroup.kill", IN_MODIFY)
        pod.client.stop(container)
        assert os.read(inotify, 4096), "nobody wrote cgroup.kill"
    finally:
        os.close(inotify)
    assert pod.client.wait_exited(container).exit_code == 137
    assert not processes_running(seconds)
    wait_until(lambda: not cgroups_of(container))


def test_container_outlives_the_daemons_death_and_is_found_again(pod: Pod, daemon: Daemon) -> None:
    client = pod.client
    stays = pod.sleeper()
    ends = pod.start(pod.container("sh", "-c", "sleep 2; exit 9"))
    config = pod.container("sh", "-c", "sleep 1; dd if=/dev/zero of=/dev/null bs=200M count=1")
    config.linux.resources.memory_limit_in_bytes = 32 * MIB
    starves = pod.start(config)
    pid, cgroup = pid_of(pod, stays), cgroup_of(pod, stays)
    forgotten = unique_seconds()
    threading.Thread(target=_exec_until_it_dies, args=(client, stays, forgotten)).start()
    wait_until(lambda: processes_running(forgotten))

    daemon.kill9()
    assert pids_in(cgroup)[0] == pid
    wait_until(lambda: len(list((daemon.state / "exits").iterdir())) == 2)
    daemon.start()

    assert pid_of(pod, stays) == pid
    assert client.status(stays).status.state == api.CONTAINER_RUNNING
    wait_until(lambda: not processes_running(forgotten))
    assert pod.asks(stays, "cat /proc/self/cgroup") == "0::/\n"
    ended = client.status(ends).status
    assert (ended.exit_code, ended.reason) == (9, "Error")
    ended = client.status(starves).status
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    wait_until(lambda: not cgroups_of(ends) + cgroups_of(starves))
    assert stats_of(pod, stays).memory.usage_bytes.value > 0
    client.stop(stays)
    wait_until(lambda: not cgroup.exists())


def _exec_until_it_dies(client: Client, container: str, seconds: str) -> None:
    try:
        client.exec(container, "sleep", seconds, timeout_s=600)
    except grpc.RpcError:
        pass  # its daemon was killed
