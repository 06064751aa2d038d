"""Fifty containers of one pod at the same moment, with and without the daemon's death in the middle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.test_many_pods import at_once

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

COUNT = 50


class Crowd:
    """The requests for fifty containers of a pod, which stay the same however often they are sent."""

    def __init__(self, client: Client, image: str) -> None:
        self.client = client
        self.pod_config = client.pod_config()
        self.pod = client.run_pod(self.pod_config)
        self.configs = [client.container_config(image, ["sleep", "600"]) for _ in range(COUNT)]
        self.ids = [""] * COUNT

    def create(self, number: int) -> str:
        self.ids[number] = self.client.create(self.pod, self.configs[number], self.pod_config)
        return self.ids[number]

    def start(self, number: int) -> None:
        self.client.start(self.ids[number])

    def listed(self) -> dict[str, api.ContainerState.ValueType]:
        return {each.id: each.state for each in self.client.containers()}

    def until_the_death(self, daemon: Daemon, call: Any) -> list[bool]:
        """Make the call for all at once, kill the daemon when some have been answered; who was."""
        with ThreadPoolExecutor(COUNT) as threads:
            calls = [threads.submit(call, number) for number in range(COUNT)]
            next(iter(wait(calls, return_when="FIRST_COMPLETED").done)).result()
            daemon.kill9()
        answered = []
        for each in calls:
            error = each.exception()
            assert error is None or isinstance(error, grpc.RpcError)
            answered.append(error is None)
        daemon.start()
        return answered

    def work(self) -> None:
        """All of them run, each once, and go."""
        assert self.listed() == dict.fromkeys(self.ids, api.CONTAINER_RUNNING)
        for container in (self.ids[0], self.ids[-1]):
            assert self.client.exec(container, "echo", "here").stdout == b"here\n"
        self.client.stop_pod(self.pod)
        self.client.remove_pod(self.pod)
        assert self.listed() == {}


def test_fifty_at_once_come_and_go(crash_daemon: Daemon, image: str) -> None:
    crowd = Crowd(crash_daemon.client, image)

    def make(number: int) -> None:
        crowd.create(number)
        crowd.start(number)

    at_once(COUNT, make)
    assert len(set(crowd.ids)) == COUNT
    crowd.work()


def test_fifty_that_are_being_created_when_the_daemon_dies_come_on_retry(
    crash_daemon: Daemon, image: str
) -> None:
    crowd = Crowd(crash_daemon.client, image)
    answered = crowd.until_the_death(crash_daemon, crowd.create)
    acknowledged = {container for container, told in zip(crowd.ids, answered, strict=True) if told}
    assert acknowledged <= crowd.listed().keys()
    at_once(COUNT, crowd.create)
    assert acknowledged <= set(crowd.ids)
    at_once(COUNT, crowd.start)
    crowd.work()


def test_fifty_that_are_being_started_when_the_daemon_dies_run_or_wait_for_their_start(
    crash_daemon: Daemon, image: str
) -> None:
    crowd = Crowd(crash_daemon.client, image)
    at_once(COUNT, crowd.create)
    answered = crowd.until_the_death(crash_daemon, crowd.start)
    states = crowd.listed()
    assert states.keys() == set(crowd.ids)
    for number, (container, told) in enumerate(zip(crowd.ids, answered, strict=True)):
        assert states[container] in (api.CONTAINER_RUNNING, api.CONTAINER_CREATED)
        assert states[container] == api.CONTAINER_RUNNING or not told
        if states[container] == api.CONTAINER_CREATED:
            crowd.start(number)
    crowd.work()
