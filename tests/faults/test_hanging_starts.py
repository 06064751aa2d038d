"""Starts that hang for as long as their pods like, in many pods at once: every other pod's start as ever."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.sandbox.exec.process import MAX_STARTS, MAX_STARTS_OF_ONE
from tests.faults.looking import wait_until
from tests.harness import procs
from tests.harness.slowness import SLOWNESS
from tests.integration.scene import Pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from tests.harness.daemon import Daemon, Daemons

HANGS_S = int(8 * SLOWNESS)
CREATES = 2
"""At a time on this node."""


@pytest.fixture(scope="module")
def daemon(daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    settings = {"runtime": {"max_parallel_creates": CREATES, "start_timeout": f"{HANGS_S}s"}}
    with daemons.without_leaks(settings=settings, archives=archives) as made:
        yield made


@pytest.fixture
def victim(daemon: Daemon, image: str) -> Iterator[Pod]:
    yield Pod.run(daemon.client, image)
    daemon.client.remove_all_pods()


@contextmanager
def attack(calls: list[Callable[[], object]]) -> Iterator[list[Future[object]]]:
    """All of these calls at once, each of which fails in the end, and not before the block has ended."""
    with ThreadPoolExecutor(len(calls)) as threads:
        under_way = [threads.submit(call) for call in calls]
        yield under_way
        assert not any(call.done() for call in under_way), "it was over too soon to prove anything"
    for call in under_way:
        assert isinstance(call.exception(), grpc.RpcError)


def lead_a_life(pod: Pod) -> None:
    """What kubelet does for an ordinary pod, and another pod made beside it."""
    container = pod.sleeper()
    assert pod.asks(container, "echo here") == "here\n"
    other = Pod.run(pod.client, pod.image)
    pod.client.stop(container)
    pod.client.remove(container)
    other.client.stop_pod(other.id)
    other.client.remove_pod(other.id)


def test_execs_that_hang_in_many_pods_hold_up_no_other_pod(
    daemon: Daemon, victim: Pod, image: str
) -> None:
    attackers = [Pod.run(daemon.client, image) for _ in range(MAX_STARTS // MAX_STARTS_OF_ONE)]
    containers = [pod.sleeper() for pod in attackers]
    for pod, container in zip(attackers, containers, strict=True):
        # What a runtime reads as it enters, and never gets to the end of.
        pod.asks(container, "mkdir -p /etc && rm -f /etc/passwd && mkfifo /etc/passwd")
    hanging: list[Callable[[], object]] = [
        partial(daemon.client.exec, container, "true", timeout_s=HANGS_S)
        for container in containers
        for _ in range(MAX_STARTS_OF_ONE)
    ]
    with attack(hanging):
        lead_a_life(victim)


def test_creations_that_hang_in_many_pods_hold_up_no_other_pod(
    daemon: Daemon, victim: Pod, image: str, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    attackers = [Pod.run(daemon.client, image) for _ in range(2 * CREATES)]

    def create(pod: Pod) -> str:
        config = pod.container("sleep", "60")
        config.mounts.add(container_path="/etc/passwd", host_path=str(fifo))
        return pod.create(config)

    with attack([partial(create, pod) for pod in attackers]):
        lead_a_life(victim)


def test_a_pod_is_removed_with_a_container_whose_creation_hangs(
    daemon: Daemon, victim: Pod, image: str, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pod = Pod.run(daemon.client, image)
    config = pod.container("sleep", "60")
    config.mounts.add(container_path="/etc/passwd", host_path=str(fifo))
    # Else it would end with the pause process.
    config.linux.security_context.namespace_options.pid = api.CONTAINER
    kept = {top: names(top) for top in tops(daemon)}
    with ThreadPoolExecutor(1) as threads:
        creation = threads.submit(pod.create, config)
        wait_until(lambda: waiting_for_a_writer(daemon) != [], "the runtime hangs")
        pod.client.stop_pod(pod.id)
        assert waiting_for_a_writer(daemon) == []
        pod.client.remove_pod(pod.id)
        left = {top: names(top) - names_before for top, names_before in kept.items()}
        error = creation.exception()
    assert not any(left.values())
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "was stopped during the creation of container" in str(error.details())


def tops(daemon: Daemon) -> list[Path]:
    return [top / "containers" for top in (daemon.root, daemon.state)]


def names(top: Path) -> set[str]:
    return {path.name for path in top.iterdir()}


def waiting_for_a_writer(daemon: Daemon) -> list[procs.Process]:
    """Of this daemon's processes, those that have opened a FIFO which nobody writes into."""
    return [
        each
        for each in procs.processes_naming(daemon.name)
        if stands_at(each.pid) == "wait_for_partner"
    ]


def stands_at(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended meanwhile
