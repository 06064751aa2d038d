"""The daemon has no descriptors left: calls are refused with ResourceExhausted, and all is well once there are some.

How far a call comes depends on how many there are: a few numbers in each run, all up to what is enough when asked for
(`-m slow`).
"""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.faults.looking import assert_nothing_new, container_state
from tests.harness import leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.harness.daemon import Daemon

SOME = (0, 4, 10)
"""Descriptors beside those that are open already."""
ENOUGH = 24


@contextmanager
def descriptors_left(daemon: Daemon, number: int) -> Iterator[None]:
    """The daemon can open so many files more."""
    pid = daemon.pid
    assert pid is not None
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # The limit is on the numbers, of which the lowest free one is given.
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = [fd for fd in range(max(used) + number + 2) if fd not in used]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[number], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def ask(call: Callable[[], object]) -> None:
    """It is answered, or refused for the right reason."""
    try:
        call()
    except grpc.RpcError as refusal:
        if refusal.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise


def run_out(daemon: Daemon, image: str, scope: leaks.Scope, numbers: Iterable[int]) -> None:
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    assert client.exec(container, "true").exit_code == 0
    pid = daemon.pid
    before = leaks.Snapshot.take(scope)
    for number in numbers:
        wanted = client.container_config(image, ["sleep", "600"])
        new = client.pod_config()
        victim = client.pod_config()
        to_stop = client.run_pod(victim)
        with descriptors_left(daemon, number):
            for call in (
                lambda new=new: client.run_pod(new),
                lambda wanted=wanted: client.create(pod, wanted, config),
                lambda: client.exec(container, "true"),
                lambda to_stop=to_stop: client.stop_pod(to_stop),
                lambda to_stop=to_stop: client.remove_pod(to_stop),
            ):
                ask(call)
            assert container_state(client, container) == "CONTAINER_RUNNING"
        # What could not be undone is listed, so that whoever made it takes it away.
        for left in {each.id for each in client.containers()} - {container}:
            client.remove(left)
        for left in {each.id for each in client.pods()} - {pod}:
            client.stop_pod(left)
            client.remove_pod(left)
        client.remove(client.create(pod, wanted, config))
        assert_nothing_new(scope, before, f"with {number} descriptors")
    assert daemon.pid == pid
    daemon.restart()
    assert [each.id for each in client.pods()] == [pod]
    assert client.exec(container, "true").exit_code == 0


def test_calls_without_descriptors_are_refused_and_leave_nothing(
    crash_daemon: Daemon, image: str, leak_scope: leaks.Scope
) -> None:
    run_out(crash_daemon, image, leak_scope, SOME)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_calls_with_any_number_of_descriptors_leave_nothing(
    crash_daemon: Daemon, image: str, leak_scope: leaks.Scope
) -> None:
    run_out(crash_daemon, image, leak_scope, range(ENOUGH))
