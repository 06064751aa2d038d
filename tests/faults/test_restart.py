"""The daemon ends, by SIGKILL or by request, while pods run; its successor has the same pods and misses nothing.

Containers end while no daemon runs, in ways that leave different traces; the successor tells each exactly.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.looking import (
    Pids,
    container_pids,
    container_state,
    is_alive,
    pause_pid,
    pod_state,
    wait_until,
)
from tests.integration.scene import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

CLOCK_TICK_NS = 10_000_000
"""A file's time is that of the kernel's last tick."""
OBEDIENT = "trap 'exit 7' TERM; trap 'exit 0' INT; while :; do sleep 0.02; done"
EATS_MEMORY = "dd if=/dev/zero of=/dev/null bs=200M count=1"
COUNTING = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done"


def kill9(daemon: Daemon) -> None:
    daemon.kill9()


def graceful(daemon: Daemon) -> None:
    assert daemon.stop() == 0


@dataclass
class Made:
    """One pod with one container, and who runs for them."""

    pod: str
    container: str
    config: api.PodSandboxConfig
    pids: tuple[int, Pids]


def make(client: Client, image: str, script: str) -> Made:
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sh", "-c", script]), config)
    return Made(pod, container, config, (pause_pid(client, pod), container_pids(client, container)))


def log_lines(client: Client, container: str) -> list[str]:
    text = Path(client.status(container).status.log_path).read_text()
    return [line.split(" ", 3)[3] for line in text.splitlines()]


def later_log_lines(client: Client, container: str) -> list[str]:
    """All the lines, once there are more than now."""
    before = len(log_lines(client, container))
    wait_until(lambda: len(log_lines(client, container)) > before, "the log goes on")
    return log_lines(client, container)


def wait_until_dead(pid: int) -> None:
    wait_until(lambda: not is_alive(pid), f"process {pid} ends")


@pytest.mark.parametrize(("end", "pods"), [(kill9, 10), (graceful, 3)])
def test_pods_that_run_are_the_same_after_a_restart(
    crash_daemon: Daemon, image: str, end: Callable[[Daemon], None], pods: int
) -> None:
    client = crash_daemon.client
    made = [make(client, image, COUNTING) for _ in range(pods)]
    listed = client.pods(), client.containers()
    statuses = [client.status(one.container).status for one in made]
    end(crash_daemon)
    crash_daemon.start()
    assert (client.pods(), client.containers()) == listed
    assert [client.status(one.container).status for one in made] == statuses
    for one in made:
        assert (pause_pid(client, one.pod), container_pids(client, one.container)) == one.pids
        assert client.exec(one.container, "echo", "here").stdout == b"here\n"
        lines = later_log_lines(client, one.container)
        assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    for one in made:
        client.stop(one.container, timeout_s=0)
        assert client.status(one.container).status.exit_code == 137
        client.stop_pod(one.pod)
        client.remove_pod(one.pod)


def checked_pods(daemon: Daemon) -> tuple[list[str], list[str]]:
    """After one more start: what plugins were asked to check, and of which pods there was a warning."""
    before = len(daemon.log().splitlines())
    kill9(daemon)
    daemon.start()
    done = "network checks done"
    wait_until(lambda: done in "".join(daemon.log().splitlines()[before:]), done)
    lines = [json.loads(line) for line in daemon.log().splitlines()[before:] if "{" in line]
    asked = [line["plugin"] for line in lines if line.get("verb") == "CHECK"]
    warned = [
        line["sandbox_id"] for line in lines if "CHECK of a running pod failed" in line["event"]
    ]
    return asked, warned


def test_only_pods_whose_network_has_changed_are_warned_of_after_a_restart(
    crash_daemon: Daemon,
) -> None:
    client = crash_daemon.client
    ports = [free_port() for _ in range(2)]
    pods = [client.run_pod(client.pod_config(host_ports={port: 80})) for port in ports]
    pods.append(client.run_pod(client.pod_config()))
    # As when the port with the lowest address goes.
    address = ["ip", "link", "set", crash_daemon.bridge, "address", "02:00:00:00:00:01"]
    subprocess.run(address, check=True)
    asked, warned = checked_pods(crash_daemon)
    assert asked.count("portmap") == len(pods)
    assert warned == []
    cut_off = ["ip", "-n", f"cri-{pods[0][:32]}", "route", "del", "default"]
    subprocess.run(cut_off, check=True)
    assert checked_pods(crash_daemon)[1] == [pods[0]]


def test_containers_that_ended_without_a_daemon_have_their_exact_exit(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    expected: dict[str, tuple[int, str]] = {}
    made = [make(client, image, OBEDIENT) for _ in range(4)]
    earlier = client.run(
        made[0].pod, client.container_config(image, ["sh", "-c", "exit 3"]), made[0].config
    )
    client.wait_exited(earlier)
    script = f"trap '{EATS_MEMORY}; printf open; exit 4' TERM; while :; do sleep 0.02; done"
    short = client.container_config(image, ["sh", "-c", script])
    short.linux.resources.memory_limit_in_bytes = 32 << 20
    short_of_memory = client.run(made[0].pod, short, made[0].config)
    at_once = client.run(
        made[0].pod,
        client.container_config(image, ["sh", "-c", "sleep 0.3; exit 9"]),
        made[0].config,
    )
    pid = container_pids(client, short_of_memory).process
    crash_daemon.kill9()
    began = time.time_ns()
    os.kill(pid, signal.SIGTERM)
    expected[short_of_memory] = 4, "OOMKilled"
    for one, number, code, reason in zip(
        made,
        (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSEGV),
        (7, 0, 137, 139),
        ("Error", "Completed", "Error", "Error"),
        strict=True,
    ):
        pid = one.pids[1].process
        os.kill(pid, number)
        wait_until_dead(pid)
        expected[one.container] = code, reason
    expected[at_once] = 9, "Error"
    exits = [crash_daemon.state / "exits" / container for container in expected]
    wait_until(lambda: all(file.exists() for file in exits), "all have ended")
    ended = time.time_ns()
    time.sleep(0.2)
    crash_daemon.start()
    for container, (code, reason) in expected.items():
        status = client.status(container).status
        assert api.ContainerState.Name(status.state) == "CONTAINER_EXITED"
        assert (status.exit_code, status.reason) == (code, reason)
        assert began - CLOCK_TICK_NS <= status.finished_at <= ended
        assert status.started_at <= status.finished_at
    log = Path(client.status(short_of_memory).status.log_path)
    wait_until(lambda: log.read_text().endswith(" F \n"), "its last line is closed")
    status = client.status(earlier).status
    assert (status.exit_code, status.reason) == (3, "Error")
    assert status.finished_at < began
    assert all(pod_state(client, one.pod) == "SANDBOX_READY" for one in made)


def test_container_that_was_only_created_can_be_started_after_a_restart(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    wanted = client.container_config(image, ["sh", "-c", "exit 5"])
    container = client.create(pod, wanted, config)
    crash_daemon.kill9()
    crash_daemon.start()
    assert container_state(client, container) == "CONTAINER_CREATED"
    assert client.create(pod, wanted, config) == container, "a retry finds what it had made"
    client.start(container)
    assert client.wait_exited(container).exit_code == 5


def test_requests_are_retried_over_a_restart_without_a_second_object(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    config = client.pod_config()
    wanted = client.container_config(image, ["sleep", "600"])
    pod = client.run_pod(config)
    container = client.create(pod, wanted, config)
    crash_daemon.kill9()
    crash_daemon.start()
    assert client.run_pod(config) == pod
    assert client.create(pod, wanted, config) == container
    assert len(client.pods()) == len(client.containers()) == 1


def test_stopped_pods_and_exited_containers_stay_as_they_were(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    one = make(client, image, OBEDIENT)
    client.stop(one.container, timeout_s=10)
    client.stop_pod(one.pod)
    before = client.pod_status(one.pod).status, client.status(one.container).status
    assert before[1].exit_code == 7
    crash_daemon.kill9()
    crash_daemon.start()
    assert (client.pod_status(one.pod).status, client.status(one.container).status) == before
    client.stop_pod(one.pod)
    client.remove_pod(one.pod)
    assert client.pods() == client.containers() == []


def test_stop_that_was_cut_short_is_finished_by_the_next_one(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    one = make(client, image, "trap '' TERM; while :; do sleep 0.02; done")
    stopping = client.runtime.StopContainer.future(
        api.StopContainerRequest(container_id=one.container, timeout=60)
    )
    time.sleep(0.2)
    crash_daemon.kill9()
    assert stopping.exception() is not None
    crash_daemon.start()
    assert container_state(client, one.container) == "CONTAINER_RUNNING"
    client.stop(one.container, timeout_s=1)
    assert client.status(one.container).status.exit_code == 137
