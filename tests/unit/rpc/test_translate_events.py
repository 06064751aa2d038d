from __future__ import annotations

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc.translate_containers import container_status
from cri_shim.rpc.translate_events import MAX_EVENT_BYTES, TYPES, container_event
from cri_shim.rpc.translate_pods import pod_sandbox_status
from cri_shim.sandbox.container_events import ContainerEvent, EventType
from cri_shim.sandbox.store.model import PodMetadata
from tests.fakes.metrics import sample
from tests.unit.rpc.fakes import make_container, make_sandbox

POD = PodMetadata("web", "default", "u1", 2)


def event(type_: EventType = EventType.STOPPED, pod: PodMetadata | None = POD) -> ContainerEvent:
    return ContainerEvent(type_, "c" * 64, "5" * 64, pod, 1234)


def decoded(raw: bytes | None) -> api.ContainerEventResponse:
    assert raw is not None
    return api.ContainerEventResponse.FromString(raw)


@pytest.mark.parametrize(
    ("type_", "number"),
    [
        (EventType.CREATED, 0),
        (EventType.STARTED, 1),
        (EventType.STOPPED, 2),
        (EventType.DELETED, 3),
    ],
)
def test_each_type_has_its_number(type_: EventType, number: int) -> None:
    assert decoded(container_event(event(type_), None, [])).container_event_type == number
    assert set(TYPES) == set(EventType)


def test_an_event_has_the_statuses_that_the_status_calls_give_the_newest_container_first() -> None:
    sandbox = make_sandbox()
    old, new = make_container("1" * 64), make_container("2" * 64)
    message = decoded(container_event(event(), sandbox, [old, new]))
    assert (message.container_id, message.created_at) == ("c" * 64, 1234)
    assert message.pod_sandbox_status == pod_sandbox_status(sandbox)
    assert list(message.containers_statuses) == [container_status(new), container_status(old)]


def test_the_pod_of_a_removed_sandbox_is_still_named() -> None:
    status = decoded(container_event(event(EventType.DELETED), None, [])).pod_sandbox_status
    assert (status.id, status.state) == ("5" * 64, api.SANDBOX_NOTREADY)
    assert (status.metadata.uid, status.metadata.namespace, status.metadata.name) == (
        *("u1", "default", "web"),
    )


def test_a_container_whose_pod_is_not_known_has_an_event_without_one() -> None:
    message = decoded(container_event(event(pod=None), None, [make_container()]))
    assert not message.HasField("pod_sandbox_status")
    assert len(message.containers_statuses) == 1


def test_an_event_is_whole_or_not_sent() -> None:
    before = sample("cri_shim_container_events_too_large_total")
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="app"),
        mounts=[api.Mount(host_path="x" * (MAX_EVENT_BYTES // 2))],
    )
    large = [make_container(str(number) * 64, config=config) for number in (1, 2)]
    assert container_event(event(), make_sandbox(), large[:1]) is not None
    assert container_event(event(), make_sandbox(), large) is None
    assert sample("cri_shim_container_events_too_large_total") == before + 1
