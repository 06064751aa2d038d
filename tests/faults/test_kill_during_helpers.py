"""The daemon dies while conmon, the OCI runtime or a plugin works for it, and the orphan goes on beside its successor.

Between two steps nothing runs; here something does. The orphan waits until the successor has recovered, and only then
has its effect or its end. Whatever the order, the unacknowledged is gone, a retry succeeds and nothing stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.interpose import Interposers, Orphaned
from tests.faults.looking import assert_nothing_new, container_state
from tests.harness import leaks, procs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.interpose import Moment
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

MAKING_A_POD: list[Moment] = [
    ("host-local", "ADD", "before"),
    ("host-local", "ADD", "after"),
    ("bridge", "ADD", "before"),
    ("bridge", "ADD", "after"),
    ("portmap", "ADD", "before"),
    ("portmap", "ADD", "after"),
    ("runc", "run", "before"),
    ("runc", "run", "after"),
]
MAKING_A_CONTAINER: list[Moment] = [
    ("conmon", "run", "before"),
    ("runc", "create", "before"),
    ("runc", "create", "after"),
]
STARTING: list[Moment] = [("runc", "start", "before"), ("runc", "start", "after")]
EXECUTING: list[Moment] = [("runc", "exec", "before"), ("runc", "exec", "after")]
TAKING_AWAY: list[Moment] = [
    ("runc", "delete", "before"),
    ("runc", "delete", "after"),
    ("portmap", "DEL", "before"),
    ("portmap", "DEL", "after"),
    ("bridge", "DEL", "before"),
    ("bridge", "DEL", "after"),
    ("host-local", "DEL", "before"),
    ("host-local", "DEL", "after"),
]


@pytest.fixture(scope="module")
def interposers(tmp_path_factory: pytest.TempPathFactory) -> Interposers:
    return Interposers(tmp_path_factory.mktemp("interpose"))


@pytest.fixture
def interposed(
    daemons: Daemons, archives: list[Path], interposers: Interposers
) -> Iterator[Daemon]:
    with daemons.without_leaks(settings=interposers.settings(), archives=archives) as daemon:
        yield daemon


@pytest.fixture
def orphaned(interposed: Daemon, interposers: Interposers) -> Orphaned:
    return Orphaned(interposed, interposers)


@pytest.fixture
def client(interposed: Daemon) -> Client:
    return interposed.client


def test_daemon_killed_while_a_pod_is_made(
    client: Client,
    orphaned: Orphaned,
    leak_scope: leaks.Scope,
    subtests: pytest.Subtests,
) -> None:
    for moment in MAKING_A_POD:
        with subtests.test(" ".join(moment)):
            empty = leaks.Snapshot.take(leak_scope)
            config = client.pod_config(host_ports={18081: 80})
            orphaned(moment, client.run_pod, config)
            assert client.pods() == []
            assert_nothing_new(leak_scope, empty, "after the restart")
            pod = client.run_pod(config)
            client.stop_pod(pod)
            client.remove_pod(pod)
            assert_nothing_new(leak_scope, empty, "after the removal")


def test_daemon_killed_while_a_container_is_made(
    client: Client,
    image: str,
    orphaned: Orphaned,
    leak_scope: leaks.Scope,
    subtests: pytest.Subtests,
) -> None:
    config = client.pod_config()
    pod = client.run_pod(config)
    for moment in MAKING_A_CONTAINER:
        with subtests.test(" ".join(moment)):
            before = leaks.Snapshot.take(leak_scope)
            wanted = client.container_config(image, ["sleep", "600"])
            orphaned(moment, client.create, pod, wanted, config)
            assert client.containers() == []
            assert_nothing_new(leak_scope, before, "after the restart")
            container = client.run(pod, wanted, config)
            assert client.exec(container, "true").exit_code == 0
            client.remove(container)
            assert_nothing_new(leak_scope, before, "after the removal")


def test_daemon_killed_while_a_container_starts(
    client: Client, image: str, orphaned: Orphaned, subtests: pytest.Subtests
) -> None:
    config = client.pod_config()
    pod = client.run_pod(config)
    for moment in STARTING:
        with subtests.test(" ".join(moment)):
            wanted = client.container_config(image, ["sleep", "600"])
            container = client.create(pod, wanted, config)
            orphaned(moment, client.start, container)
            # Whoever finds it created starts it, as the kubelet's next look would.
            if container_state(client, container) == "CONTAINER_CREATED":
                client.start(container)
            assert container_state(client, container) == "CONTAINER_RUNNING"
            assert client.exec(container, "echo", "here").stdout == b"here\n"
            client.stop(container)
            assert client.status(container).status.exit_code == 137
            client.remove(container)


def test_daemon_killed_while_an_exec_begins(
    client: Client, image: str, orphaned: Orphaned, subtests: pytest.Subtests
) -> None:
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    for moment in EXECUTING:
        with subtests.test(" ".join(moment)):
            orphaned(moment, client.exec, container, "sleep", "4321")
            sleeps = [p for p in procs.processes_naming(container) if p.command == "sleep 4321"]
            assert sleeps == [], "the command goes on"
            assert client.exec(container, "echo", "here").stdout == b"here\n"


def test_daemon_killed_while_a_pod_is_taken_away(
    client: Client,
    image: str,
    orphaned: Orphaned,
    leak_scope: leaks.Scope,
    subtests: pytest.Subtests,
) -> None:
    for moment in TAKING_AWAY:
        with subtests.test(" ".join(moment)):
            empty = leaks.Snapshot.take(leak_scope)
            config = client.pod_config(host_ports={18081: 80})
            pod = client.run_pod(config)
            container = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
            orphaned(moment, client.stop_pod, pod)
            assert [item.id for item in client.pods()] == [pod]
            assert client.status(container).status.exit_code == 137
            client.stop_pod(pod)
            client.remove_pod(pod)
            assert_nothing_new(leak_scope, empty, "after the removal")
