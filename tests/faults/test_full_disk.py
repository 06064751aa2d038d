"""The disk is full, or read-only: creations are refused with ResourceExhausted and leave nothing; what runs can go.

`root` holds records and writable layers, `state` bundles, exit files and what the runtime keeps. Either may be full, of
bytes or of inodes, from the start or in the middle of a creation.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.faults.disk import SmallDisk, on_small_disk
from tests.faults.looking import assert_nothing_new, container_state, wait_until
from tests.harness import leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.daemon import Daemon, Daemons

FILLINGS: list[Callable[[SmallDisk], None]] = [SmallDisk.fill, SmallDisk.take_inodes]


@pytest.fixture(scope="module", params=["root", "state"])
def cramped(
    request: pytest.FixtureRequest, daemons: Daemons, archives: list[Path]
) -> Iterator[tuple[Daemon, SmallDisk]]:
    with on_small_disk(daemons, archives, request.param) as daemon_and_disk:
        yield daemon_and_disk


@pytest.fixture
def daemon(cramped: tuple[Daemon, SmallDisk], leak_guard: None) -> Iterator[Daemon]:
    daemon, disk = cramped
    yield daemon
    disk.thaw()
    disk.free()
    if daemon.pid is None:
        daemon.start()
    daemon.client.remove_all_pods()


@pytest.fixture
def disk(cramped: tuple[Daemon, SmallDisk], daemon: Daemon) -> SmallDisk:
    return cramped[1]


@contextmanager
def refused(why: str = "no space left") -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as refusal:
        yield
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, refusal.value.details()
    assert why in (refusal.value.details() or "").lower()


@pytest.mark.parametrize("fill", FILLINGS)
def test_creations_on_a_full_disk_are_refused_and_leave_nothing(
    daemon: Daemon,
    disk: SmallDisk,
    image: str,
    leak_scope: leaks.Scope,
    fill: Callable[[SmallDisk], None],
) -> None:
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    another = client.pod_config()
    wanted = client.container_config(image, ["sleep", "600"])
    fill(disk)
    before = leaks.Snapshot.take(leak_scope)
    with refused():
        client.run_pod(another)
    with refused():
        client.create(pod, wanted, config)
    assert [item.id for item in client.pods()] == [pod]
    assert client.containers() == []
    assert_nothing_new(leak_scope, before, "after the refusals")
    disk.free()
    client.run_pod(another)
    container = client.run(pod, wanted, config)
    assert client.exec(container, "true").exit_code == 0


@pytest.mark.parametrize("fill", FILLINGS)
def test_what_runs_on_a_full_disk_is_used_stopped_and_removed(
    daemon: Daemon, disk: SmallDisk, image: str, fill: Callable[[SmallDisk], None]
) -> None:
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    fill(disk)
    assert container_state(client, container) == "CONTAINER_RUNNING"
    client.stop(container)
    assert client.status(container).status.exit_code == 137
    client.stop_pod(pod)
    client.remove_pod(pod)
    assert client.pods() == client.containers() == []


def test_disk_that_can_only_be_read_changes_nothing_and_hinders_nobody_afterwards(
    daemon: Daemon, disk: SmallDisk, image: str, leak_scope: leaks.Scope
) -> None:
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    wanted = client.container_config(image, ["sleep", "600"])
    another = client.pod_config()
    disk.freeze()
    before = leaks.Snapshot.take(leak_scope)
    with refused("read-only file system"):
        client.run_pod(another)
    with refused("read-only file system"):
        client.create(pod, wanted, config)
    assert_nothing_new(leak_scope, before, "after the refusals")
    assert [item.id for item in client.pods()] == [pod]
    assert [item.id for item in client.containers()] == [container]
    client.stop(container)
    assert client.status(container).status.exit_code == 137
    for remove in (client.remove, client.remove_pod):
        with pytest.raises(grpc.RpcError) as refusal:
            remove(container if remove == client.remove else pod)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    disk.thaw()
    client.remove(container)
    client.remove_pod(pod)
    assert client.pods() == client.containers() == []
    client.run_pod(another)


def test_daemon_starts_on_a_full_disk_and_finds_its_pods(
    daemon: Daemon, disk: SmallDisk, image: str
) -> None:
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    disk.fill()
    daemon.kill9()
    daemon.start()
    assert [item.id for item in client.pods()] == [pod]
    assert container_state(client, container) == "CONTAINER_RUNNING"
    client.remove(container)
    client.stop_pod(pod)
    client.remove_pod(pod)
    assert client.pods() == []


def test_end_on_a_full_disk_is_saved_once_there_is_room_and_told_after_a_restart(
    daemon: Daemon, disk: SmallDisk, image: str
) -> None:
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    script = "trap 'exit 7' TERM; while :; do sleep 0.02; done"
    container = client.run(pod, client.container_config(image, ["sh", "-c", script]), config)
    disk.fill()
    client.stop(container, timeout_s=10)
    told = client.status(container).status
    daemon.kill9()
    disk.free()
    daemon.start()
    again = client.status(container).status
    assert (again.exit_code, again.reason) == (told.exit_code, told.reason)
    assert again.state == told.state


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        *(("sandbox", step) for step in ("bundle", "rootfs", "process")),
        *(("container", step) for step in ("bundle", "rootfs", "monitor")),
    ],
)
def test_disk_that_fills_up_during_a_creation(
    daemon: Daemon, disk: SmallDisk, image: str, leak_scope: leaks.Scope, kind: str, step: str
) -> None:
    """Either the creation is refused and gone, or it is acknowledged and there after a crash."""
    client = daemon.client
    config = client.pod_config()
    empty = leaks.Snapshot.take(leak_scope)
    daemon.kill9()
    daemon.start(failpoint=f"{kind} {step} 1 stop")
    pod = client.run_pod(config) if kind == "container" else ""
    before = leaks.Snapshot.take(leak_scope) if pod else empty
    if kind == "sandbox":
        answer = Answer(lambda: client.run_pod(config))
    else:
        wanted = client.container_config(image, ["sleep", "600"])
        answer = Answer(lambda: client.create(pod, wanted, config))
    pid = daemon.pid
    assert pid is not None
    wait_until(lambda: is_stopped(pid), f"the daemon stops at {kind} {step}")
    disk.fill()
    os.kill(pid, signal.SIGCONT)
    acknowledged, refusal = answer.wait()
    if refusal is not None:
        # From here on the runtime itself meets the full disk, and runc 1.1 does not always say what it met.
        own = {grpc.StatusCode.INTERNAL} if step == "process" else set()
        assert refusal.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, *own}, refusal.details()
        disk.free()
        assert_nothing_new(leak_scope, before, "after the refusal")
    else:
        daemon.kill9()
        disk.free()
        daemon.start()
    found = client.pods() if kind == "sandbox" else client.containers()
    assert [item.id for item in found] == ([acknowledged] if acknowledged else [])


class Answer:
    """What a call that goes on in a thread brings in the end."""

    def __init__(self, call: Callable[[], str]) -> None:
        self._call = call
        self._id = ""
        self._refusal: grpc.RpcError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self) -> tuple[str, grpc.RpcError | None]:
        """The ID, or the refusal."""
        self._thread.join()
        return self._id, self._refusal

    def _run(self) -> None:
        try:
            self._id = self._call()
        except grpc.RpcError as refusal:
            self._refusal = refusal


def is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
