"""conmon, the OCI runtime and plugins fail, hang or are killed at each of their calls, before their work or after it.

Whatever a call says then, it says it in time, the daemon goes on, a retry succeeds, and in the end nothing stays. Each
run has some killed after their work, which nobody but the kernel tells of; the rest takes minutes (`-m slow`).
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.interpose import Interposers
from tests.faults.looking import assert_nothing_new, container_state, pod_state
from tests.faults.test_kill_during_helpers import (
    EXECUTING,
    MAKING_A_CONTAINER,
    MAKING_A_POD,
    STARTING,
    TAKING_AWAY,
)
from tests.harness import leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.interpose import Moment
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

DEADLINE_S = 2
"""Of each helper, by the daemon's configuration."""
ANSWER_S = 20.0
"""Of a call in which one of them hangs: its own deadline, and those of the undoing."""
OUTCOMES = ("fail", "die", "hang")


@pytest.fixture(scope="module")
def interposers(tmp_path_factory: pytest.TempPathFactory) -> Interposers:
    return Interposers(tmp_path_factory.mktemp("interpose"))


@pytest.fixture
def interposed(
    daemons: Daemons, archives: list[Path], interposers: Interposers
) -> Iterator[Daemon]:
    settings = interposers.settings()
    deadline = f"{DEADLINE_S}s"
    settings["cni"] = {**_section(settings, "cni"), "timeout": deadline}
    settings["runtime"] = {
        **_section(settings, "runtime"),
        "command_timeout": deadline,
        "start_timeout": deadline,
    }
    with daemons.without_leaks(settings=settings, archives=archives) as daemon:
        yield daemon


def _section(settings: dict[str, object], name: str) -> dict[str, object]:
    section = settings[name]
    assert isinstance(section, dict)
    return section


class Trial:
    """Pods made, used and taken away while one helper misbehaves."""

    def __init__(
        self, daemon: Daemon, interposers: Interposers, image: str, scope: leaks.Scope
    ) -> None:
        self._daemon = daemon
        self._client: Client = daemon.client
        self._interposers = interposers
        self._image = image
        self._scope = scope
        self._pid = daemon.pid

    def __call__(self, stage: str, ending: str, moment: Moment) -> None:
        """One helper misbehaves in one stage of a pod's life."""
        client = self._client
        empty = leaks.Snapshot.take(self._scope)
        config = client.pod_config(host_ports={18084: 80})
        if stage == "pod":
            self._misbehave(ending, moment, lambda: client.run_pod(config))
        pod = client.run_pod(config)
        if stage != "pod":
            self._live_one_container(stage, ending, moment, pod, config)
        if stage == "stop":
            self._misbehave(ending, moment, lambda: client.stop_pod(pod))
        client.stop_pod(pod)
        assert pod_state(client, pod) == "SANDBOX_NOTREADY"
        assert {c.state for c in client.containers()} <= {api.CONTAINER_EXITED}
        client.remove_pod(pod)
        assert self._daemon.pid == self._pid, "the daemon has ended"
        assert_nothing_new(self._scope, empty, "after the removal")

    def _live_one_container(
        self, stage: str, ending: str, moment: Moment, pod: str, config: api.PodSandboxConfig
    ) -> None:
        client = self._client
        wanted = client.container_config(self._image, ["sleep", "600"])
        if stage == "container":
            self._misbehave(ending, moment, lambda: client.create(pod, wanted, config))
        container = client.create(pod, wanted, config)
        if stage == "start":
            self._misbehave(ending, moment, lambda: client.start(container))
        container = self._running(pod, container, wanted, config)
        if stage == "exec":
            self._misbehave(
                ending,
                moment,
                lambda: client.exec(container, "sleep", "0.01", timeout_s=DEADLINE_S),
            )
        assert client.exec(container, "echo", "here").stdout == b"here\n"

    def _misbehave(self, ending: str, moment: Moment, call: Callable[[], object]) -> None:
        self._interposers.arm_to(ending, *moment)
        began = time.monotonic()
        with contextlib.suppress(grpc.RpcError):  # what it says, says test_failing_parts
            call()
        assert time.monotonic() - began < ANSWER_S
        assert self._interposers.struck()
        self._interposers.disarm()

    def _running(
        self, pod: str, container: str, wanted: api.ContainerConfig, config: api.PodSandboxConfig
    ) -> str:
        """As the kubelet goes on: what is created is started, what has failed to start is replaced."""
        state = container_state(self._client, container)
        if state == "CONTAINER_EXITED":
            assert self._client.status(container).status.reason == "StartError"
            self._client.remove(container)
            container = self._client.create(pod, wanted, config)
        if state != "CONTAINER_RUNNING":
            self._client.start(container)
        return container


STAGES: dict[str, list[Moment]] = {
    "pod": MAKING_A_POD,
    "container": MAKING_A_CONTAINER,
    "start": STARTING,
    "exec": EXECUTING,
    # Not host-local's: bridge (1.1.1), whose IPAM plugin fails in DEL, has removed the interface by then, and for want
    # of its addresses no later DEL finds the masquerading rule.
    "stop": [moment for moment in TAKING_AWAY if moment[0] != "host-local"],
}
SOME: list[tuple[str, Moment]] = [
    ("pod", ("bridge", "ADD", "after")),
    ("pod", ("runc", "run", "after")),
    ("container", ("runc", "create", "after")),
    ("start", ("runc", "start", "after")),
    ("exec", ("runc", "exec", "after")),
    ("stop", ("runc", "delete", "after")),
]


@pytest.fixture
def trial(
    interposed: Daemon, interposers: Interposers, image: str, leak_scope: leaks.Scope
) -> Trial:
    return Trial(interposed, interposers, image, leak_scope)


def test_helpers_that_are_killed_after_their_work(trial: Trial, subtests: pytest.Subtests) -> None:
    for stage, moment in SOME:
        with subtests.test(" ".join(moment), stage=stage):
            trial(stage, "die", moment)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_helpers_that_end_badly_at_every_call(trial: Trial, subtests: pytest.Subtests) -> None:
    for stage, moments in STAGES.items():
        for moment in moments:
            for ending in OUTCOMES:
                with subtests.test(" ".join(moment), stage=stage, ending=ending):
                    trial(stage, ending, moment)
