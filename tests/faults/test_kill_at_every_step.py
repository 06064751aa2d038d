"""The daemon dies, or a step fails, at every named step of both creations: nothing stays, and a retry succeeds.

Nobody lists the steps: the daemon ends at each one that it has not ended at before (see `every_step`), until a pod with
a container comes through; and a step of the source that was never met fails the test. A step is noted before its
effect, so that a death at one step is a death right after the effect of the step before it; `commit` is noted when the
record is complete and nobody has been told.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.every_step import EveryStep, declared_steps
from tests.faults.looking import assert_nothing_new
from tests.harness import leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

KINDS = ("sandbox", "container")
MANY = 50
"""More steps than any creation has."""
ANSWERS = {
    "raise": (grpc.StatusCode.UNAVAILABLE, True),
    "bug": (grpc.StatusCode.INTERNAL, False),
}
"""Code, and whether the client reads what happened: of a bug only the log says that."""


class Creation:
    """One pod with one container, made by requests that stay the same however often they are sent."""

    def __init__(self, client: Client, image: str, *, handler: str = "") -> None:
        self._client = client
        self._handler = handler
        self._pod_config = client.pod_config(host_ports={18080: 80})
        volume = api.Mount(
            container_path="/volume", image=api.ImageSpec(image=image), readonly=True
        )
        self._config = client.container_config(image, ["sleep", "600"], mounts=[volume])
        self.pod = ""
        self.container = ""

    def make(self, kind: str) -> str:
        """Send the request for the sandbox or the container; its ID."""
        if kind == "sandbox":
            self.pod = self._client.run_pod(self._pod_config, handler=self._handler)
            return self.pod
        self.container = self._client.create(self.pod, self._config, self._pod_config)
        return self.container

    def there_are(self, kind: str) -> list[str]:
        """The IDs that the daemon lists."""
        listed = self._client.pods() if kind == "sandbox" else self._client.containers()
        return [item.id for item in listed]

    def use(self) -> None:
        """The pod with its container does what it is for."""
        if not self.container:
            self.make("container")
        self._client.start(self.container)
        assert self._client.exec(self.container, "echo", "here").stdout == b"here\n"

    def remove(self) -> None:
        """Stop and remove the pod, which takes the container along."""
        self._client.stop_pod(self.pod)
        self._client.remove_pod(self.pod)


@pytest.fixture
def every_step(crash_daemon: Daemon, tmp_path: Path) -> Iterator[Callable[[str], EveryStep]]:
    """Turns the daemon into one that meets every step with the action given."""
    made: list[EveryStep] = []

    def turn(action: str) -> EveryStep:
        made.append(EveryStep(crash_daemon, tmp_path, action))
        crash_daemon.kill9()
        crash_daemon.start()
        return made[0]

    yield turn
    for each in made:
        each.end()
    crash_daemon.kill9()


def assert_complete(met: list[str]) -> None:
    """All steps were met, once: a creation has come through while armed, and none of the source's is missing."""
    assert len(met) == len(set(met))
    assert {name.partition(" ")[2] for name in met} == declared_steps()
    for kind in KINDS:
        assert {f"{kind} record", f"{kind} process", f"{kind} commit"} <= set(met)


def test_daemon_killed_at_any_step_leaves_nothing_and_a_retry_succeeds(
    crash_daemon: Daemon,
    every_step: Callable[[str], EveryStep],
    image: str,
    leak_scope: leaks.Scope,
    subtests: pytest.Subtests,
) -> None:
    steps = every_step("kill")
    empty = leaks.Snapshot.take(leak_scope)
    for kind in KINDS:
        for _ in range(MANY):
            creation = Creation(crash_daemon.client, image)
            if kind == "container":
                creation.make("sandbox")
            before = leaks.Snapshot.take(leak_scope)
            steps.arm()
            try:
                creation.make(kind)
            except grpc.RpcError:
                pass  # as it was meant to be; how it ended is looked at below
            else:
                steps.disarm()
                creation.remove()
                break
            with subtests.test(steps.met()[-1]):
                assert crash_daemon.wait_ended() == -signal.SIGKILL
                crash_daemon.start()
                if steps.met()[-1] == f"{kind} commit":
                    # Complete, but nobody was told: the retry is told.
                    assert creation.there_are(kind) == [creation.make(kind)]
                else:
                    assert creation.there_are(kind) == []
                    assert_nothing_new(leak_scope, before, "after the restart")
                    creation.make(kind)
                creation.use()
                creation.remove()
                assert_nothing_new(leak_scope, empty, "after the removal")
    assert_complete(steps.met())


@pytest.mark.parametrize("action", ["raise", pytest.param("bug", marks=pytest.mark.slow)])
def test_step_that_fails_is_undone_and_a_retry_succeeds(
    crash_daemon: Daemon,
    every_step: Callable[[str], EveryStep],
    image: str,
    leak_scope: leaks.Scope,
    subtests: pytest.Subtests,
    action: str,
) -> None:
    steps = every_step(action)
    empty = leaks.Snapshot.take(leak_scope)
    for kind in KINDS:
        for _ in range(MANY):
            creation = Creation(crash_daemon.client, image)
            if kind == "container":
                creation.make("sandbox")
            before = leaks.Snapshot.take(leak_scope)
            steps.arm()
            try:
                creation.make(kind)
            except grpc.RpcError as error:
                answer = error.code(), "made to fail" in (error.details() or "")
            else:
                steps.disarm()
                creation.remove()
                break
            with subtests.test(f"{action} at {steps.met()[-1]}"):
                assert answer == ANSWERS[action]
                assert creation.there_are(kind) == []
                assert_nothing_new(leak_scope, before, "after the failure")
                creation.make(kind)
                creation.use()
                creation.remove()
                assert_nothing_new(leak_scope, empty, "after the removal")
    assert_complete(steps.met())
