"""A monitor or pause process dies, or an exec stays behind: it is seen, told and cleaned up."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.log_text import joined, write_text
from tests.faults.looking import (
    container_pids,
    container_state,
    is_alive,
    pause_pid,
    pod_reason,
    pod_state,
    wait_until,
)
from tests.harness import procs
from tests.harness.slowness import SLOWNESS
from tests.harness.streaming_client import V5, dial, websocket_headers

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

SEEN_WITHIN_S = 5.0 * SLOWNESS
"""It is some ten milliseconds on an idle machine; where the event is missed, a minute."""
TEXT_BYTES = 1 << 20


@pytest.fixture
def client(crash_daemon: Daemon) -> Client:
    return crash_daemon.client


@pytest.fixture
def config(client: Client) -> api.PodSandboxConfig:
    return client.pod_config()


@pytest.fixture
def pod(client: Client, config: api.PodSandboxConfig) -> str:
    return client.run_pod(config)


@pytest.fixture
def container(client: Client, config: api.PodSandboxConfig, pod: str, image: str) -> str:
    return client.run(pod, client.container_config(image, ["sleep", "600"]), config)


def assert_monitor_died(client: Client, container: str) -> None:
    status = client.wait_exited(container)
    assert (status.exit_code, status.reason) == (137, "MonitorDied")
    assert "monitor" in status.message


def test_container_whose_monitor_is_killed_is_killed_and_says_so(
    client: Client, pod: str, container: str
) -> None:
    pids = container_pids(client, container)
    os.kill(pids.monitor, signal.SIGKILL)
    took = wait_until(
        lambda: container_state(client, container) == "CONTAINER_EXITED", "the exit is told"
    )
    assert took < SEEN_WITHIN_S
    assert_monitor_died(client, container)
    assert not is_alive(pids.process)
    assert pod_state(client, pod) == "SANDBOX_READY"
    client.stop(container)
    client.remove(container)
    assert client.containers() == []


def test_log_has_whatever_a_killed_monitor_had_written(
    client: Client, config: api.PodSandboxConfig, pod: str, image: str, tmp_path: Path, seed: int
) -> None:
    text = tmp_path / "lines"
    write_text(text, TEXT_BYTES, seed)
    mount = api.Mount(container_path="/text", host_path=str(tmp_path), readonly=True)
    script = "while :; do cat /text/lines; done"
    wanted = client.container_config(image, ["sh", "-c", script], mounts=[mount])
    container = client.run(pod, wanted, config)
    log = Path(client.status(container).status.log_path)
    wait_until(lambda: log.stat().st_size > 2 * TEXT_BYTES, "much is logged")
    os.kill(container_pids(client, container).monitor, signal.SIGKILL)
    assert_monitor_died(client, container)
    read = joined([log], "stdout")
    written = text.read_bytes() * (len(read) // TEXT_BYTES + 1)
    # A record that was to be continued is closed, and where it ended nothing says whether a line did.
    closed = log.read_bytes().endswith(b" stdout F \n")
    whole = written.startswith(read.removesuffix(b"\n") if closed else read)
    assert whole, "a line is lost, torn or doubled before the end"
    client.stop(container)
    client.remove(container)


def test_monitor_of_a_created_container_is_missed_too(
    client: Client, config: api.PodSandboxConfig, pod: str, image: str
) -> None:
    container = client.create(pod, client.container_config(image, ["true"]), config)
    pids = container_pids(client, container)
    os.kill(pids.monitor, signal.SIGKILL)
    assert_monitor_died(client, container)
    assert not is_alive(pids.process)


def test_monitor_killed_while_no_daemon_runs_is_missed_after_the_start(
    crash_daemon: Daemon, client: Client, container: str
) -> None:
    pids = container_pids(client, container)
    crash_daemon.kill9()
    os.kill(pids.monitor, signal.SIGKILL)
    crash_daemon.start()
    assert_monitor_died(client, container)
    assert not is_alive(pids.process)


def test_container_killed_with_its_monitor_while_no_daemon_runs_has_ended(
    crash_daemon: Daemon, client: Client, container: str
) -> None:
    pids = container_pids(client, container)
    crash_daemon.kill9()
    os.kill(pids.monitor, signal.SIGKILL)
    os.kill(pids.process, signal.SIGKILL)
    wait_until(lambda: not is_alive(pids.process), "the process ends")
    crash_daemon.start()
    assert_monitor_died(client, container)


def test_pod_whose_pause_process_is_killed_is_not_ready_and_says_why(
    client: Client, pod: str, container: str
) -> None:
    os.kill(pause_pid(client, pod), signal.SIGKILL)
    took = wait_until(lambda: pod_state(client, pod) == "SANDBOX_NOTREADY", "the pod is not ready")
    assert took < SEEN_WITHIN_S
    assert "pause container ended" in pod_reason(client, pod)
    client.stop_pod(pod)
    assert client.status(container).status.exit_code == 137


def test_pod_whose_pause_process_ended_without_a_daemon_is_not_ready_and_says_why(
    crash_daemon: Daemon, client: Client, pod: str
) -> None:
    pid = pause_pid(client, pod)
    crash_daemon.kill9()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the pause process ends")
    crash_daemon.start()
    assert pod_state(client, pod) == "SANDBOX_NOTREADY"
    assert "pause container ended" in pod_reason(client, pod)


def test_pause_process_that_ends_under_the_next_daemon_is_missed_too(
    crash_daemon: Daemon, client: Client, pod: str
) -> None:
    crash_daemon.kill9()
    crash_daemon.start()
    assert pod_state(client, pod) == "SANDBOX_READY"
    os.kill(pause_pid(client, pod), signal.SIGKILL)
    took = wait_until(lambda: pod_state(client, pod) == "SANDBOX_NOTREADY", "the pod is not ready")
    assert took < SEEN_WITHIN_S
    assert "pause container ended" in pod_reason(client, pod)


def test_exec_of_a_dead_daemon_is_killed_with_what_it_started(
    crash_daemon: Daemon, client: Client, container: str
) -> None:
    outcome: list[grpc.RpcError] = []

    def call() -> None:
        try:
            client.exec(container, "sh", "-c", "sleep 4321 & sleep 1234", timeout_s=0)
        except grpc.RpcError as error:
            outcome.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: len(sleepers(client, container)) == 2, "the exec runs")
    crash_daemon.kill9()
    caller.join()
    assert outcome
    crash_daemon.start()
    assert sleepers(client, container) == []
    assert container_state(client, container) == "CONTAINER_RUNNING"
    assert client.exec(container, "echo", "here").stdout == b"here\n"


def test_streamed_execs_of_a_dead_daemon_are_killed_with_what_they_started(
    crash_daemon: Daemon, client: Client, container: str
) -> None:
    connections = []
    for tty in (False, True):
        request = api.ExecRequest(
            container_id=container,
            cmd=["sh", "-c", "sleep 4321 & sleep 1234"],
            stdout=True,
            tty=tty,
        )
        url = client.runtime.Exec(request, timeout=10).url
        connections.append(dial(url, websocket_headers(V5))[0])
    wait_until(lambda: len(sleepers(client, container)) == 4, "the execs run")
    crash_daemon.kill9()
    for connection in connections:
        connection.close()
    crash_daemon.start()
    assert sleepers(client, container) == []
    assert client.exec(container, "echo", "here").stdout == b"here\n"


def sleepers(client: Client, container: str) -> list[int]:
    """The pids of the sleeps that the exec started, among the processes of the container's cgroup."""
    return [
        process.pid
        for process in procs.processes_naming(container)
        if process.command in ("sleep 4321", "sleep 1234")
    ]
