from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import msgspec
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc import translate_containers
from cri_shim.rpc.translate_containers import (
    container_entry,
    container_status,
    list_entry,
    selected,
    stop_signal,
)
from cri_shim.sandbox.store.model import ContainerState, ContainerStatus, ImageVolumeRecord, User
from tests.unit.rpc.fakes import CREATED_AT_NS, make_container

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from cri_shim.sandbox.store.store import Container

USER = User(1000, 2000, (2000, 3000))
EXITED = ContainerStatus(
    committed_at_ns=CREATED_AT_NS + 1,
    started_at_ns=CREATED_AT_NS + 2,
    finished_at_ns=CREATED_AT_NS + 3,
    exit_code=137,
    reason="OOMKilled",
    message="out of memory",
)


def test_an_entry_tells_what_the_container_is() -> None:
    assert container_entry(make_container()) == api.Container(
        id="c" * 64,
        pod_sandbox_id="5" * 64,
        metadata=api.ContainerMetadata(name="app", attempt=1),
        image=api.ImageSpec(image="sha256:1234", user_specified_image="busybox:1"),
        image_ref="docker.io/library/busybox@sha256:abcd",
        image_id="sha256:1234",
        state=api.CONTAINER_CREATED,
        created_at=CREATED_AT_NS,
        labels={"tier": "front"},
        annotations={"note": "two"},
    )


def test_an_entry_is_encoded_once_per_status() -> None:
    container = make_container()
    first = list_entry(container)
    assert list_entry(container) is first
    container.status = container.status.started(CREATED_AT_NS + 2)
    both = api.ListContainersResponse.FromString(first + list_entry(container))
    assert [c.state for c in both.containers] == [api.CONTAINER_CREATED, api.CONTAINER_RUNNING]


def test_an_entry_is_the_same_in_a_stream() -> None:
    container = make_container()
    streamed = api.StreamContainersResponse.FromString(list_entry(container))
    assert list(streamed.containers) == [container_entry(container)]


def test_every_state_has_a_form() -> None:
    assert set(translate_containers.STATES) == set(ContainerState)


def test_a_status_tells_how_the_container_ended() -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="app"),
        image=api.ImageSpec(image="busybox"),
        mounts=[api.Mount(container_path="/data", host_path="/srv", readonly=True)],
        linux=api.LinuxContainerConfig(
            resources=api.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=1 << 20)
        ),
    )
    status = container_status(make_container(config=config, status=EXITED, stop_signal=2))
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)
    assert (status.reason, status.message) == ("OOMKilled", "out of memory")
    assert [status.created_at, status.started_at, status.finished_at] == [
        *(CREATED_AT_NS, CREATED_AT_NS + 2, CREATED_AT_NS + 3),
    ]
    assert status.mounts == config.mounts
    assert status.resources.linux == config.linux.resources
    assert status.log_path == "/var/log/pods/web/app/0.log"
    assert status.image_id == "sha256:1234"
    assert status.stop_signal == api.SIGNAL_SIGINT
    user = status.user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (1000, 2000, [2000, 3000])


def test_a_status_has_the_image_under_the_name_that_users_know() -> None:
    image = container_status(make_container(image_name="docker.io/library/busybox:1")).image
    assert image == api.ImageSpec(
        image="docker.io/library/busybox:1", user_specified_image="busybox:1"
    )
    assert container_status(make_container()).image.image == "sha256:1234", "a record of before"


def test_a_status_has_image_volumes_under_the_ids_that_garbage_collection_looks_for() -> None:
    mount = api.Mount(container_path="/m", readonly=True, image=api.ImageSpec(image="models:1"))
    config = api.ContainerConfig(mounts=[api.Mount(container_path="/d", host_path="/d"), mount])
    volume = ImageVolumeRecord(1, "sha256:77", ("l9",))
    shown = container_status(make_container(config=config, image_volumes=(volume,))).mounts[1]
    assert (shown.image.image, shown.image.image_ref) == ("sha256:77", "sha256:77")
    assert config.mounts[1].image.image == "models:1", "the request stays as it was"


@pytest.mark.parametrize("told", [container_entry, container_status])
def test_no_field_of_cri_stays_unset_where_everything_is_known(
    told: Callable[[Container], Message],
) -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="app"),
        image=api.ImageSpec(image="busybox"),
        labels={"a": "b"},
        annotations={"c": "d"},
        mounts=[api.Mount(container_path="/data", host_path="/srv")],
        linux=api.LinuxContainerConfig(resources=api.LinuxContainerResources(cpu_shares=512)),
    )
    message = told(make_container(config=config, status=msgspec.structs.replace(EXITED, user=USER)))
    assert {field.name for field, _ in message.ListFields()} == {
        field.name for field in message.DESCRIPTOR.fields
    }


def test_what_is_not_known_is_not_told() -> None:
    container = make_container()
    container.status = msgspec.structs.replace(container.status, user=None)
    status = container_status(container)
    assert not status.HasField("user")
    assert not status.HasField("resources")


def test_a_user_without_other_groups_is_told() -> None:
    container = make_container()
    container.status = msgspec.structs.replace(container.status, user=User(0, 0, ()))
    status = container_status(container)
    assert status.user.HasField("linux")
    assert not status.user.linux.supplemental_groups


@pytest.mark.parametrize(
    ("number", "name"),
    [
        *(
            (number.value, f"SIGNAL_{number.name}")
            for number in signal.Signals
            if number.value < 32 and number.name != "SIGSTKFLT"
        ),
        (16, "SIGNAL_SIGSTKFLT"),
        (34, "SIGNAL_SIGRTMIN"),
        (35, "SIGNAL_SIGRTMINPLUS1"),
        (49, "SIGNAL_SIGRTMINPLUS15"),
        (50, "SIGNAL_SIGRTMAXMINUS14"),
        (63, "SIGNAL_SIGRTMAXMINUS1"),
        (64, "SIGNAL_SIGRTMAX"),
        (0, "SIGNAL_RUNTIME_DEFAULT"),
        (32, "SIGNAL_RUNTIME_DEFAULT"),
        (65, "SIGNAL_RUNTIME_DEFAULT"),
    ],
)
def test_a_stop_signal_has_the_name_that_cri_gives_it(number: int, name: str) -> None:
    assert api.Signal.Name(stop_signal(number)) == name


RUNNING = api.ContainerStateValue(state=api.CONTAINER_RUNNING)


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        (api.ContainerFilter(), "12"),
        (api.ContainerFilter(id="1"), "1"),
        (api.ContainerFilter(pod_sandbox_id="b" * 64), "2"),
        (api.ContainerFilter(pod_sandbox_id="b"), "2"),
        (api.ContainerFilter(state=RUNNING), ""),
        (api.ContainerFilter(state=api.ContainerStateValue(state=api.CONTAINER_CREATED)), "1"),
        (api.ContainerFilter(label_selector={"tier": "front"}), "12"),
        (api.ContainerFilter(label_selector={"tier": "back"}), ""),
        (api.ContainerStatsFilter(id="2", pod_sandbox_id="b"), "2"),
        (api.ContainerStatsFilter(id="2", pod_sandbox_id="a"), ""),
        (api.ContainerStatsFilter(label_selector={"tier": "front"}), "12"),
    ],
)
def test_a_filter_lets_through_what_meets_all_of_it(
    filter_: api.ContainerFilter | api.ContainerStatsFilter, expected: str
) -> None:
    containers = [
        make_container("1" * 64, "a" * 64),
        make_container("2" * 64, "b" * 64, status=EXITED),
    ]
    assert "".join(c.id[0] for c in selected(containers, filter_)) == expected
