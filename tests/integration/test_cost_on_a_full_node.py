"""A pod costs what it costs, however much else there is on the node; and what the daemon costs without any."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.bench import footprint
from tests.harness.audited_daemon import LOG_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

LIVES = 3
ROUNDS = 3
CROWD = 1500
MOST_TO_FEW = 1.5
"""What a life may cost beside a crowd to one without: the machine's other work tells, their scans would double it."""

NOT_IN_ORDINARY_LIFE = (
    # Pulls over the network, and unpacking, which is another process's.
    *(
        "aiohttp",
        "yarl",
        "multidict",
        "cri_shim.image.registry.http",
        "cri_shim.image.unpack.template_process.",
    ),
    *(
        "libarchive",
        "isal",
        "zstandard",
        "cri_shim.image.unpack.tar",
        "cri_shim.image.unpack.extract.",
    ),
    # The streaming process's, and what only people ask for.
    *("websockets", "cri_shim.streaming.server", "grpc_reflection.v1alpha"),
    *("cri_shim.cli.check", "cri_shim.cli.image", "cri_shim.cli.demo", "unittest", "pytest"),
)
PODS = 20
MAX_MIB = 90
"""With 100 pods, that is; twenty take about a megabyte less. Packages that only development needs are among it."""


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


def test_what_ordinary_life_needs_is_loaded_at_the_start_and_nothing_else(
    audited_daemon: Daemon, image: str
) -> None:
    client = audited_daemon.client
    loaded = {line.split()[1] for line in looks(audited_daemon) if line.startswith("import ")}
    assert {"grpc", "cri_shim.sandbox.pods"} <= loaded
    too_much = {name for name in loaded if name.startswith(NOT_IN_ORDINARY_LIFE)}
    assert too_much == set()
    pod_life(client, image)
    client.pods()
    client.runtime.Status(api.StatusRequest(verbose=True))
    client.runtime.ListContainerStats(api.ListContainerStatsRequest())
    assert looks(audited_daemon) == []


def test_daemon_streaming_process_and_unpacker_fit_into_their_memory(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    assert crash_daemon.pid is not None
    before = programs_mib(crash_daemon.pid)
    for number in range(PODS):
        config = client.pod_config(f"idle-{number}", host_network=True)
        client.run(client.run_pod(config), client.container_config(image, ["sleep", "600"]), config)
    beside = programs_mib(crash_daemon.pid)
    assert before.keys() == {
        *("cri_shim", "cri_shim.streamer.process", "cri_shim.image.unpack.template_process")
    }
    # The unpacker ends a minute after its last use, which is before these pods on a slow machine.
    most = before | beside
    assert sum(most.values()) < MAX_MIB, f"{most}; before there were pods: {before}"


def programs_mib(daemon_pid: int) -> dict[str, float]:
    """What the daemon and its own programs take (PSS), without monitors and containers."""
    found: dict[str, float] = {}
    for pid in footprint.family(daemon_pid):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if "-m" in arguments:
            found[arguments[arguments.index("-m") + 1]] = footprint.pss_mib(pid)
    return found


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
