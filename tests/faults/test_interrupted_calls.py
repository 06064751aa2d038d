"""Every call that changes something, interrupted: its client's deadline passes, or the daemon dies; then it is retried.

A retry joins the work or gets its result, the effect is there once, and nothing is left of what was given up. All calls
are made side by side, each on objects of its own. Which calls there are is asked of the service's description: a new
one fails the test until it is told here what it is for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.looking import container_state, pod_state, wait_until
from tests.faults.served_images import serve_images
from tests.harness import procs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.faults.served_images import ServedImages
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

    Interruption = Callable[[Daemon, "list[Case]", float], None]
    Moment = tuple[Interruption, float]

ANSWER_S = 60.0
NOT_SERVED = {"CheckpointContainer", "CheckpointPod", "RestorePod"}
READ = ("List", "Stream", "Get", "Version", "Status", "Stats", "Info", "Events", "RuntimeConfig")
"""Beginnings or ends of the names of calls that change nothing, but for what is in the table."""
Done = grpc.StatusCode.OK


@dataclass
class Case:
    """One call on objects of its own."""

    name: str
    request: Any
    holds: Callable[[Any], None]
    """Asserts that the effect is there; it gets the answer, if the call has one that counts."""
    again: grpc.StatusCode = Done
    """What the call may also be answered with once it has had its effect."""
    answers: list[Any] = field(default_factory=list)


class Scene:
    """What the calls are made on."""

    def __init__(self, client: Client, image: str, served: ServedImages) -> None:
        self.client = client
        self.image = image
        self.to_pull, self.to_remove, *_ = served.own[0]
        self.config = client.pod_config()
        self.pod = client.run_pod(self.config)

    def container(self, *command: str, stdin: bool = False) -> str:
        """One that runs."""
        wanted = self.client.container_config(self.image, command or ["sleep", "600"])
        wanted.stdin = stdin
        return self.client.run(self.pod, wanted, self.config)

    def prepare(self) -> list[Case]:
        """Each call, with objects of its own."""
        return [
            getattr(self, name)() for name in sorted(vars(type(self))) if name.startswith("case_")
        ]

    # --- pods ----------------------------------------------------------------------------------------------------

    def case_run_pod_sandbox(self) -> Case:
        config = self.client.pod_config()
        Path(config.log_directory).mkdir(parents=True, exist_ok=True)

        def holds(answer: api.RunPodSandboxResponse) -> None:
            mine = [p for p in self.client.pods() if p.metadata.name == config.metadata.name]
            assert [p.id for p in mine] == [answer.pod_sandbox_id]
            assert mine[0].state == api.SANDBOX_READY

        return Case("RunPodSandbox", api.RunPodSandboxRequest(config=config), holds)

    def case_stop_pod_sandbox(self) -> Case:
        pod = self.client.run_pod(self.client.pod_config())

        def holds(_: object) -> None:
            assert pod_state(self.client, pod) == "SANDBOX_NOTREADY"

        return Case("StopPodSandbox", api.StopPodSandboxRequest(pod_sandbox_id=pod), holds)

    def case_remove_pod_sandbox(self) -> Case:
        config = self.client.pod_config()
        pod = self.client.run_pod(config)
        wanted = self.client.container_config(self.image, ["sleep", "600"])
        container = self.client.run(pod, wanted, config)

        def holds(_: object) -> None:
            assert pod not in {each.id for each in self.client.pods()}
            assert container not in {each.id for each in self.client.containers()}

        return Case("RemovePodSandbox", api.RemovePodSandboxRequest(pod_sandbox_id=pod), holds)

    def case_update_pod_sandbox_resources(self) -> Case:
        request = api.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=self.pod, resources=api.LinuxContainerResources(cpu_shares=512)
        )
        return Case("UpdatePodSandboxResources", request, lambda _: None)

    def case_port_forward(self) -> Case:
        request = api.PortForwardRequest(pod_sandbox_id=self.pod, port=[80])
        return Case("PortForward", request, lambda answer: self._is_url(answer.url))

    # --- containers ----------------------------------------------------------------------------------------------

    def case_create_container(self) -> Case:
        wanted = self.client.container_config(self.image, ["sleep", "600"])
        log = Path(self.config.log_directory, wanted.log_path)
        log.parent.mkdir(parents=True, exist_ok=True)
        request = api.CreateContainerRequest(
            pod_sandbox_id=self.pod, config=wanted, sandbox_config=self.config
        )

        def holds(answer: api.CreateContainerResponse) -> None:
            names = {c.id: c.metadata.name for c in self.client.containers()}
            mine = [c for c, name in names.items() if name == wanted.metadata.name]
            assert mine == [answer.container_id]

        return Case("CreateContainer", request, holds)

    def case_start_container(self) -> Case:
        wanted = self.client.container_config(self.image, ["sleep", "600"])
        container = self.client.create(self.pod, wanted, self.config)

        def holds(_: object) -> None:
            assert container_state(self.client, container) == "CONTAINER_RUNNING"
            assert self.client.exec(container, "true").exit_code == 0

        return Case(
            "StartContainer",
            api.StartContainerRequest(container_id=container),
            holds,
            again=grpc.StatusCode.FAILED_PRECONDITION,
        )

    def case_stop_container(self) -> Case:
        container = self.container("sh", "-c", "trap '' TERM; while :; do sleep 0.02; done")

        def holds(_: object) -> None:
            status = self.client.status(container).status
            assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)

        return Case(
            "StopContainer", api.StopContainerRequest(container_id=container, timeout=1), holds
        )

    def case_remove_container(self) -> Case:
        container = self.container()

        def holds(_: object) -> None:
            assert container not in {each.id for each in self.client.containers()}

        return Case("RemoveContainer", api.RemoveContainerRequest(container_id=container), holds)

    def case_update_container_resources(self) -> Case:
        container = self.container()
        request = api.UpdateContainerResourcesRequest(
            container_id=container, linux=api.LinuxContainerResources(cpu_shares=333)
        )

        def holds(_: object) -> None:
            assert self.client.status(container).status.resources.linux.cpu_shares == 333

        return Case("UpdateContainerResources", request, holds)

    def case_reopen_container_log(self) -> Case:
        container = self.container("sh", "-c", "while :; do echo line; sleep 0.01; done")
        log = Path(self.client.status(container).status.log_path)
        rotated = log.with_suffix(".rotated")
        log.rename(rotated)

        def holds(_: object) -> None:
            wait_until(lambda: log.stat().st_size > 0, "the new log is written to")

        request = api.ReopenContainerLogRequest(container_id=container)
        return Case("ReopenContainerLog", request, holds)

    def case_exec_sync(self) -> Case:
        container = self.container()
        request = api.ExecSyncRequest(
            container_id=container, cmd=["sh", "-c", "sleep 0.3; echo here"], timeout=20
        )

        def holds(answer: api.ExecSyncResponse) -> None:
            assert answer.stdout == b"here\n"
            wait_until(lambda: self._processes(container) == ["sleep 600"], "no exec is left")

        return Case("ExecSync", request, holds)

    def case_exec(self) -> Case:
        request = api.ExecRequest(container_id=self.container(), cmd=["true"], stdout=True)
        return Case("Exec", request, lambda answer: self._is_url(answer.url))

    def case_attach(self) -> Case:
        request = api.AttachRequest(
            container_id=self.container("cat", stdin=True), stdin=True, stdout=True
        )
        return Case("Attach", request, lambda answer: self._is_url(answer.url))

    # --- images and the rest -------------------------------------------------------------------------------------

    def case_pull_image(self) -> Case:
        self.client.remove_image(self.to_pull)

        def holds(answer: api.PullImageResponse) -> None:
            assert self.client.image_id(self.to_pull) == answer.image_ref

        request = api.PullImageRequest(image=api.ImageSpec(image=self.to_pull))
        return Case("PullImage", request, holds)

    def case_remove_image(self) -> Case:
        self.client.pull(self.to_remove)

        def holds(_: object) -> None:
            assert self.client.image_id(self.to_remove) is None

        request = api.RemoveImageRequest(image=api.ImageSpec(image=self.to_remove))
        return Case("RemoveImage", request, holds)

    def case_update_runtime_config(self) -> Case:
        return Case("UpdateRuntimeConfig", api.UpdateRuntimeConfigRequest(), lambda _: None)

    def _is_url(self, url: str) -> None:
        assert url.startswith("http")

    def _processes(self, container: str) -> list[str]:
        return [
            process.command
            for process in procs.processes_naming(container)
            if not process.zombie and "conmon" not in process.command
        ]


def send(client: Client, case: Case, timeout_s: float = ANSWER_S) -> Any:
    """Make the call in the background."""
    image_call = case.name in ("PullImage", "RemoveImage")
    stub: Any = getattr(client.images if image_call else client.runtime, case.name)
    return stub.future(case.request, timeout=timeout_s)


def retry_all(client: Client, cases: list[Case]) -> None:
    """Make every call again, twice; each is answered, with one and the same answer, and has had its effect."""
    for _ in range(2):
        for case, call in [(case, send(client, case)) for case in cases]:
            if call.code() is Done:
                case.answers.append(call.result())
            else:
                assert call.code() is case.again, (case.name, call.code(), call.details())
        for case in cases:
            answer = case.answers[-1] if case.answers else None
            case.holds(answer)
            if case.name in ("RunPodSandbox", "CreateContainer", "PullImage"):
                assert all(each == answer for each in case.answers), case.name


@pytest.fixture(scope="module")
def served() -> Iterator[ServedImages]:
    with serve_images(1) as images:
        yield images


@pytest.fixture
def scene(crash_daemon: Daemon, image: str, served: ServedImages) -> Iterator[Scene]:
    yield Scene(crash_daemon.client, image, served)
    if crash_daemon.pid is None:
        crash_daemon.start()
    crash_daemon.client.remove_all_pods()
    for name in served.own[0]:
        crash_daemon.client.remove_image(name)
    # The process that unpacks would stay for a minute.
    crash_daemon.restart()


def assert_is_every_call(cases: list[Case]) -> None:
    """The table has every call of the services that is not known to change nothing."""
    services = [api.DESCRIPTOR.services_by_name[f"{kind}Service"] for kind in ("Runtime", "Image")]
    names = {method.name for service in services for method in service.methods}
    told = {case.name for case in cases} | NOT_SERVED
    assert {n for n in names - told if not n.startswith(READ) and not n.endswith(READ)} == set()
    assert told <= names


def client_goes_away(daemon: Daemon, cases: list[Case], after_s: float) -> None:
    for call in [send(daemon.client, case, after_s) for case in cases]:
        call.exception()


def daemon_dies(daemon: Daemon, cases: list[Case], after_s: float) -> None:
    calls = [send(daemon.client, case) for case in cases]
    time.sleep(after_s)
    daemon.kill9()
    for case, call in zip(cases, calls, strict=True):
        if call.exception() is None:
            case.answers.append(call.result())
    daemon.start()


def interrupt(scene: Scene, daemon: Daemon, moments: Sequence[Moment]) -> None:
    for interruption, after_s in moments:
        cases = scene.prepare()
        assert_is_every_call(cases)
        interruption(daemon, cases, after_s)
        retry_all(scene.client, cases)


def test_every_call_is_retried_after_an_interruption(crash_daemon: Daemon, scene: Scene) -> None:
    interrupt(
        scene,
        crash_daemon,
        [(client_goes_away, 0.002), (client_goes_away, 0.03), (daemon_dies, 0.03)],
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_call_is_retried_after_interruptions_at_many_moments(
    crash_daemon: Daemon, scene: Scene
) -> None:
    moments = [0.001 * 1.6**n for n in range(14)]
    interrupt(scene, crash_daemon, [(client_goes_away, after_s) for after_s in moments])
    interrupt(scene, crash_daemon, [(daemon_dies, after_s) for after_s in moments])
