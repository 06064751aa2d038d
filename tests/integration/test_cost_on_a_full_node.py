"""A pod costs what it costs, however much else there is on the node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.harness.audited_daemon import LOG_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

LIVES = 3
ROUNDS = 3
CROWD = 1500
MOST_TO_FEW = 1.5
"""What a life may cost beside a crowd to one without: the machine's other work tells, their scans would double it."""


@pytest.fixture
def audited_daemon(daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    """A daemon that writes down when it looks at everything there is; its start is forgotten."""
    daemon = daemons.create()
    daemon.module = "tests.harness.audited_daemon"
    try:
        daemon.start()
        daemon.warm_up(archives)
        yield daemon
    finally:
        daemons.destroy(daemon)


def pod_life(client: Client, image: str) -> None:
    """A pod with two containers: one that is stopped, one that ends by itself."""
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    client.exec(container, "true")
    ended = client.run(pod, client.container_config(image, ["true"], name="ends"), config)
    client.wait_exited(ended)
    client.stop(container, timeout_s=0)
    client.remove(container)
    client.stop_pod(pod)
    client.remove_pod(pod)


def looks(daemon: Daemon) -> list[str]:
    """What it looked at since its start, or since the last call."""
    file = daemon.tree / LOG_NAME
    found = file.read_text().splitlines()
    os.truncate(file, 0)
    return found


def test_ordinary_life_looks_at_no_other_process_and_no_other_mount(
    audited_daemon: Daemon, image: str
) -> None:
    client = audited_daemon.client
    assert any(line.startswith("processes ") for line in looks(audited_daemon)), "its start does"
    for _ in range(2):
        pod_life(client, image)
    assert looks(audited_daemon) == []


def test_an_exec_that_is_late_and_a_command_that_is_not_there_make_nobody_look_at_everything(
    audited_daemon: Daemon, image: str
) -> None:
    client = audited_daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    looks(audited_daemon)
    late = ("sh", "-c", "(sleep 600 &); sleep 600")
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        client.exec(container, *late, timeout_s=1)
    wrong = client.container_config(image, ["/no/such/program"], name="wrong")
    with pytest.raises(grpc.RpcError, match="no such file"):
        client.run(pod, wrong, config)
    client.remove_all_pods()
    assert looks(audited_daemon) == []


def test_pods_of_a_former_daemon_are_stopped_without_a_look_at_everything(
    audited_daemon: Daemon, image: str
) -> None:
    client = audited_daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    audited_daemon.stop()
    audited_daemon.start()
    looks(audited_daemon)
    audited_daemon.client.remove_all_pods()
    assert looks(audited_daemon) == []


def test_a_pods_life_costs_the_daemon_the_same_beside_many_processes(
    daemon: Daemon, client: Client, image: str
) -> None:
    pod_life(client, image)
    alone = [cpu_of_lives(daemon, client, image) for _ in range(ROUNDS)]
    with crowd():
        beside = [cpu_of_lives(daemon, client, image) for _ in range(ROUNDS)]
    alone += [cpu_of_lives(daemon, client, image) for _ in range(ROUNDS)]
    # The least of each: other work on the machine only ever adds.
    assert min(beside) < MOST_TO_FEW * min(alone), f"{beside} beside {CROWD}, {alone} alone"


def cpu_of_lives(daemon: Daemon, client: Client, image: str) -> float:
    """Seconds of processor time that some lives take of the daemon."""
    assert daemon.pid is not None
    # clock_getcpuclockid(3): the processor time of another process, all its threads, to the nanosecond.
    clock = (~daemon.pid << 3) | 2
    before = time.clock_gettime(clock)
    for _ in range(LIVES):
        pod_life(client, image)
    return time.clock_gettime(clock) - before


@contextmanager
def crowd() -> Iterator[None]:
    """Many processes that do nothing, as a full node has them."""
    script = f"i=0; while [ $i -lt {CROWD} ]; do sleep 600 & i=$((i+1)); done; echo; wait"
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as shell:
        assert shell.stdout is not None
        try:
            shell.stdout.read(1)
            yield
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
