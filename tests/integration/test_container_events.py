"""The stream of container events on real parts: order, statuses, promptness, and what ends it."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness.client import CALL_TIMEOUT_S
from tests.integration.scene import Pod, container_info, refused
from tests.integration.test_pod_lifecycle import pod_info

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration
CREATED, STARTED, STOPPED, DELETED = (
    *(api.CONTAINER_CREATED_EVENT, api.CONTAINER_STARTED_EVENT),
    *(api.CONTAINER_STOPPED_EVENT, api.CONTAINER_DELETED_EVENT),
)
EXITS = 10
PROMPT_S = 0.05


class Events:
    """A subscription, from now on."""

    def __init__(self, client: Client) -> None:
        self._stream: Any = client.runtime.GetContainerEvents(
            api.GetEventsRequest(), timeout=CALL_TIMEOUT_S
        )
        # Calls of one connection are begun in their order.
        client.runtime.Version(api.VersionRequest(), timeout=10)

    def cancel(self) -> None:
        self._stream.cancel()

    def next(self) -> api.ContainerEventResponse:
        event: api.ContainerEventResponse = next(self._stream)
        return event

    def until(self, object_id: str, type_: int) -> list[api.ContainerEventResponse]:
        """All events up to that one."""
        found = [self.next()]
        while (found[-1].container_id, found[-1].container_event_type) != (object_id, type_):
            found.append(self.next())
        return found


def types_of(events: list[api.ContainerEventResponse], object_id: str) -> list[int]:
    return [e.container_event_type for e in events if e.container_id == object_id]


def test_a_pods_whole_life_is_told_in_order_with_statuses(client: Client, image: str) -> None:
    subscribers = [Events(client), Events(client)]
    pod = Pod.run(client, image)
    ended = client.wait_exited(pod.start(pod.container("sh", "-c", "exit 3", name="ends"))).id
    sleeper = pod.sleeper()
    client.stop(sleeper)
    client.remove(ended)
    client.stop_pod(pod.id)
    client.remove_pod(pod.id)
    first, second = (each.until(pod.id, DELETED) for each in subscribers)
    assert first == second
    for object_id in (pod.id, ended, sleeper):
        assert types_of(first, object_id) == [CREATED, STARTED, STOPPED, DELETED]
    assert len(first) == 12
    assert [e.created_at for e in first] == sorted(e.created_at for e in first)
    assert all(e.pod_sandbox_status.metadata == pod.config.metadata for e in first)
    by_step = {(e.container_id, e.container_event_type): e for e in first}
    ready = by_step[pod.id, STARTED]
    assert ready.pod_sandbox_status.state == api.SANDBOX_READY
    assert ready.pod_sandbox_status.network.ip
    assert not ready.containers_statuses, "the pause process is no container"
    (exit_,) = (c for c in by_step[ended, STOPPED].containers_statuses if c.id == ended)
    assert (exit_.state, exit_.exit_code, exit_.reason) == (api.CONTAINER_EXITED, 3, "Error")
    assert exit_.finished_at <= by_step[ended, STOPPED].created_at
    running = by_step[sleeper, STARTED].containers_statuses
    assert [(c.id, c.state) for c in running] == [
        (sleeper, api.CONTAINER_RUNNING),
        (ended, api.CONTAINER_EXITED),
    ]
    assert [c.id for c in by_step[ended, DELETED].containers_statuses] == [sleeper]
    assert by_step[pod.id, STOPPED].pod_sandbox_status.state == api.SANDBOX_NOTREADY
    assert not by_step[pod.id, DELETED].containers_statuses


def test_an_exit_is_told_at_once(client: Client, image: str) -> None:
    """On a busy machine each of many takes its time, but not each of ten: the third best counts."""
    pod = Pod.run(client, image)
    events = Events(client)
    took_s = []
    for number in range(EXITS):
        container = pod.sleeper(pod.container(name=f"sleeper-{number}"))
        events.until(container, STARTED)
        pid = container_info(client, container)["pid"]
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        stopped = events.next()
        took_s.append(time.monotonic() - killed_s)
        assert types_of([stopped], container) == [STOPPED]
        assert stopped.containers_statuses[0].exit_code == 137
        assert client.status(container).status.state == api.CONTAINER_EXITED
    assert sorted(took_s)[2] < PROMPT_S, took_s


def test_a_dead_pause_process_is_told(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    events = Events(client)
    os.kill(pod_info(client, pod.id)["pid"], signal.SIGKILL)
    stopped = events.next()
    assert types_of([stopped], pod.id) == [STOPPED]
    assert stopped.pod_sandbox_status.state == api.SANDBOX_NOTREADY


def test_a_start_that_fails_is_told_as_an_end(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    events = Events(client)
    container = pod.create(pod.container("/no/such/program"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        client.start(container)
    told = events.until(container, STOPPED)
    assert types_of(told, container) == [CREATED, STOPPED]
    (status,) = told[-1].containers_statuses
    assert status.reason == "StartError"


def test_a_subscriber_that_leaves_is_not_missed(client: Client, image: str) -> None:
    staying = Events(client)
    for _ in range(3):
        Events(client).cancel()
    pod = Pod.run(client, image)
    assert types_of(staying.until(pod.id, STARTED), pod.id) == [CREATED, STARTED]


@pytest.mark.parametrize("end", ["stop", "kill9"])
def test_a_daemon_that_goes_ends_streams_and_the_next_one_has_new_ones(
    crash_daemon: Daemon, image: str, end: str
) -> None:
    """Also for a client that does not read, which a stop must not wait for."""
    client = crash_daemon.client
    pod = Pod.run(client, image)
    container = pod.sleeper()
    pid = container_info(client, container)["pid"]
    reading, idle = Events(client), Events(client)
    before_s = time.monotonic()
    getattr(crash_daemon, end)()
    assert time.monotonic() - before_s < CALL_TIMEOUT_S / 4
    for stream in (reading, idle):
        with refused(grpc.StatusCode.UNAVAILABLE):
            stream.next()
    crash_daemon.start()
    again = Events(client)
    os.kill(pid, signal.SIGKILL)
    (stopped,) = again.until(container, STOPPED)
    assert [c.exit_code for c in stopped.containers_statuses] == [137]
