from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc.calls import Call, MethodName, subject_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

META = api.PodSandboxMetadata(name="web", namespace="default", uid="u")


def name(method: str, service: str = "runtime.v1.RuntimeService") -> MethodName:
    return MethodName(service, method)


def test_a_path_is_a_service_and_a_method() -> None:
    assert MethodName.parse("/runtime.v1.ImageService/ListImages") == name(
        "ListImages", "runtime.v1.ImageService"
    )


@pytest.mark.parametrize(
    "method",
    [
        *("ListPodSandbox", "ListContainers", "ContainerStatus", "PodSandboxStatus", "Status"),
        *("ContainerStats", "ImageFsInfo", "Version", "RuntimeConfig", "ExecSync", "ImageStatus"),
    ],
)
def test_what_is_asked_all_day_is_quiet(method: str) -> None:
    assert Call(name(method)).level == "debug"


@pytest.mark.parametrize(
    "method", ["RunPodSandbox", "StopContainer", "RemoveImage", "PullImage", "ReopenContainerLog"]
)
def test_what_changes_something_is_told(method: str) -> None:
    assert Call(name(method)).level == "info"


@pytest.mark.parametrize(
    ("code", "level"),
    [
        (grpc.StatusCode.CANCELLED, "info"),
        (grpc.StatusCode.NOT_FOUND, "warning"),
        (grpc.StatusCode.UNAVAILABLE, "warning"),
        (grpc.StatusCode.INTERNAL, "error"),
        (grpc.StatusCode.DATA_LOSS, "error"),
    ],
)
def test_the_level_of_a_failure_says_whose_fault_it_is(code: grpc.StatusCode, level: str) -> None:
    assert Call(name("ListContainers"), code=code).level == level


@pytest.mark.parametrize(
    ("message", "subject"),
    [
        (api.VersionRequest(), {}),
        (api.StopPodSandboxRequest(pod_sandbox_id="1"), {"sandbox_id": "1"}),
        (api.StopContainerRequest(container_id="2"), {"container_id": "2"}),
        (
            api.RunPodSandboxRequest(config=api.PodSandboxConfig(metadata=META)),
            {"pod": "default/web"},
        ),
        (
            api.CreateContainerRequest(
                pod_sandbox_id="1",
                config=api.ContainerConfig(metadata=api.ContainerMetadata(name="app")),
            ),
            {"sandbox_id": "1", "container": "app"},
        ),
        (api.RemoveImageRequest(image=api.ImageSpec(image="a:1")), {"image": "a:1"}),
        (api.ImageStatusResponse(image=api.Image(id="sha256:1")), {}),
        (admin_pb2.InfoRequest(), {}),
    ],
)
def test_a_message_says_what_it_is_about(message: Message, subject: dict[str, str]) -> None:
    assert subject_of(message) == subject


def test_only_calls_about_the_server_pass_a_closed_gate() -> None:
    for passing in (
        name("Version"),
        name("Version", "runtime.v1alpha2.RuntimeService"),
        name("GetContainerEvents"),
        name("Check", "grpc.health.v1.Health"),
        name("ServerReflectionInfo", "grpc.reflection.v1alpha.ServerReflection"),
    ):
        assert passing.is_about_the_server
    assert not name("Status").is_about_the_server
    assert not name("Info", "cri_shim.admin.v1.Admin").is_about_the_server


def test_every_call_has_an_id_of_its_own() -> None:
    assert len({Call(name("Status")).id for _ in range(100)}) == 100
