"""What one object hangs on when the daemon starts holds up neither the node's readiness nor any other object's calls.

The daemon is killed while a plugin or the runtime works for a pod, and that program, or the one that its undoing needs,
then hangs. The order of events tells, not the clock: the successor serves everyone while the program still hangs.
"""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.faults.interpose import Interposers
from tests.faults.looking import (
    assert_nothing_new,
    container_state,
    is_alive,
    pod_state,
    wait_until,
)
from tests.harness import leaks
from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.interpose import Moment
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

PLUGIN_TIMEOUT_S = 8 * SLOWNESS
"""Long enough for all that is asked meanwhile."""
COMMAND_TIMEOUT_S = 8 * SLOWNESS
ENDED_S = 3 * PLUGIN_TIMEOUT_S


@pytest.fixture(scope="module")
def interposers(tmp_path_factory: pytest.TempPathFactory) -> Interposers:
    return Interposers(tmp_path_factory.mktemp("interpose"))


@pytest.fixture
def daemon(daemons: Daemons, archives: list[Path], interposers: Interposers) -> Iterator[Daemon]:
    settings = interposers.settings()
    for section, values in (
        ("cni", {"timeout": f"{PLUGIN_TIMEOUT_S:g}s"}),
        ("runtime", {"command_timeout": f"{COMMAND_TIMEOUT_S:g}s"}),
    ):
        before = settings[section]
        assert isinstance(before, dict)
        settings[section] = {**before, **values}
    with daemons.without_leaks(settings=settings, archives=archives) as daemon:
        yield daemon
        interposers.disarm()


class Node:
    """A daemon, a victim beside whatever hangs, and the successor's log."""

    def __init__(self, daemon: Daemon, interposers: Interposers, image: str) -> None:
        self.daemon = daemon
        self.client: Client = daemon.client
        self._interposers = interposers
        self._image = image
        self._config = self.client.pod_config("victim")
        self._victim = self.client.run_pod(self._config)
        self._running = self._make("runs")

    def _make(self, name: str) -> str:
        wanted = self.client.container_config(self._image, ["sleep", "600"], name=name)
        return self.client.run(self._victim, wanted, self._config)

    def killed_in(self, moment: Moment, call: Callable[[], object], *, hangs: bool = True) -> None:
        """The daemon dies in the middle of `call`, and the program it had called hangs, or goes on a moment later."""
        self._interposers.arm(self.daemon, *moment, patient=hangs)
        with pytest.raises(grpc.RpcError):
            call()
        assert self.daemon.wait_ended() == -signal.SIGKILL

    def succeeded(self) -> dict[str, object]:
        """A successor is ready; what its log says about its recovery."""
        before = len(self.daemon.log())
        self.daemon.start()
        lines = [json.loads(line) for line in self.daemon.log()[before:].splitlines()]
        [recovered] = [line for line in lines if line["event"] == "recovered"]
        return dict(recovered)

    def serves_the_victim(self) -> None:
        """Calls of everyday life, all of which succeed."""
        assert pod_state(self.client, self._victim) == "SANDBOX_READY"
        assert self.client.exec(self._running, "echo", "here").stdout == b"here\n"
        another = self._make(f"another-{time.monotonic_ns()}")
        assert self.client.exec(another, "true").exit_code == 0
        self.client.stop(another)
        self.client.remove(another)

    def ids(self) -> set[str]:
        """Every sandbox that has a record."""
        return {entry.name for entry in (self.daemon.root / "sandboxes").iterdir()}

    def pending_deletes(self) -> list[str]:
        """Attachments whose DEL has still to be done."""
        return [file.name for file in self.daemon.root.rglob("*-eth0.json")]


@pytest.fixture
def node(daemon: Daemon, interposers: Interposers, image: str) -> Node:
    return Node(daemon, interposers, image)


@pytest.mark.parametrize(
    ("goes_on", "moment"),
    [
        (True, "before"),
        (True, "after"),
        (False, "after"),
        pytest.param(False, "before", marks=pytest.mark.slow),
    ],
)
def test_a_plugin_that_hangs_in_its_add_holds_up_nobody(
    node: Node,
    interposers: Interposers,
    leak_scope: leaks.Scope,
    moment: str,
    *,
    goes_on: bool,
) -> None:
    client = node.client
    empty, known = leaks.Snapshot.take(leak_scope), node.ids()
    config = client.pod_config("hung")
    node.killed_in(("bridge", "ADD", moment), lambda: client.run_pod(config))
    [hung] = node.ids() - known
    assert node.succeeded()["unfinished"] == 0
    assert hung not in {pod.id for pod in client.pods()}
    client.stop_pod(hung)
    client.remove_pod(hung)
    node.serves_the_victim()
    again = client.run_pod(config)
    client.remove_pod(again)
    assert is_alive(interposers.orphan), "it has hung all the time"
    assert len(node.pending_deletes()) == 1
    if goes_on:
        interposers.let_go()  # and finishes its ADD
    wait_until(lambda: not node.pending_deletes(), "the DEL is done", timeout_s=ENDED_S)
    assert not is_alive(interposers.orphan)
    assert_nothing_new(leak_scope, empty, "after the DEL")


def test_a_plugin_that_hangs_in_its_del_does_not_keep_the_pod(
    node: Node, interposers: Interposers, leak_scope: leaks.Scope
) -> None:
    client = node.client
    empty = leaks.Snapshot.take(leak_scope)
    hung = client.run_pod(client.pod_config("hung"))
    node.killed_in(("bridge", "DEL", "before"), lambda: client.stop_pod(hung))
    assert node.succeeded()["unfinished"] == 0
    assert pod_state(client, hung) == "SANDBOX_NOTREADY"
    client.stop_pod(hung)
    client.remove_pod(hung)
    node.serves_the_victim()
    assert is_alive(interposers.orphan), "it has hung all the time"
    assert len(node.pending_deletes()) == 1
    interposers.let_go()
    wait_until(lambda: not node.pending_deletes(), "the DEL is done", timeout_s=ENDED_S)
    assert_nothing_new(leak_scope, empty, "after the DEL")


def test_a_pod_whose_undoing_hangs_is_listed_as_not_ready_until_it_is_gone(
    node: Node, interposers: Interposers, leak_scope: leaks.Scope
) -> None:
    client = node.client
    empty, known = leaks.Snapshot.take(leak_scope), node.ids()
    config = client.pod_config("hung")
    interposers.arm_to("hang", "runc", "delete", "before")
    node.killed_in(("runc", "run", "before"), lambda: client.run_pod(config), hangs=False)
    [hung] = node.ids() - known
    assert node.succeeded()["unfinished"] == 1
    assert {pod.id for pod in client.pods()} == known | {hung}
    assert pod_state(client, hung) == "SANDBOX_NOTREADY"
    reason = json.loads(client.pod_status(hung, verbose=True).info["info"])["reason"]
    assert "still being recovered: runc delete for" in reason
    with pytest.raises(grpc.RpcError) as refused:
        client.run_pod(config)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "runc delete for" in str(refused.value.details())
    node.serves_the_victim()
    assert hung in node.ids(), "it has hung all the time"
    client.remove_pod(hung)  # joins the undoing
    assert_nothing_new(leak_scope, empty, "after the undoing")
    client.remove_pod(client.run_pod(config))


def test_a_container_whose_runtime_hangs_is_listed_and_used_like_any_other(
    node: Node, interposers: Interposers, image: str
) -> None:
    client = node.client
    config = client.pod_config("hung")
    pod = client.run_pod(config)
    container = client.create(pod, client.container_config(image, ["sleep", "600"]), config)
    node.daemon.kill9()
    interposers.arm_to("hang", "runc", "state", "before")
    assert node.succeeded()["unfinished"] == 1
    assert interposers.struck()
    assert container_state(client, container) == "CONTAINER_CREATED"
    node.serves_the_victim()
    client.start(container)
    assert client.exec(container, "true").exit_code == 0
    client.remove_pod(pod)
