from __future__ import annotations

import pytest

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.rpc.admin_service import AdminService
from cri_shim.rpc.handlers import admin_service, cri_services, python_name
from cri_shim.rpc.image_service import ImageService
from cri_shim.rpc.runtime_service import RuntimeService

SERVED = {
    "RuntimeService": {
        *("Version", "Status", "RuntimeConfig", "UpdateRuntimeConfig"),
        *("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "UpdatePodSandboxResources"),
        *("PodSandboxStatus", "ListPodSandbox", "StreamPodSandboxes"),
        *("CreateContainer", "StartContainer", "StopContainer", "RemoveContainer"),
        *("ListContainers", "StreamContainers", "ContainerStatus"),
        *("ExecSync", "Exec", "Attach", "PortForward"),
        *("ReopenContainerLog", "UpdateContainerResources", "GetContainerEvents"),
        *("ContainerStats", "ListContainerStats", "StreamContainerStats"),
        *("PodSandboxStats", "ListPodSandboxStats", "StreamPodSandboxStats"),
        *("ListMetricDescriptors", "ListPodSandboxMetrics", "StreamPodSandboxMetrics"),
    },
    "ImageService": {
        *("PullImage", "ListImages", "StreamImages", "ImageStatus", "RemoveImage", "ImageFsInfo"),
    },
    "Admin": {
        *("ImportImage", "PullImage", "ExportImage", "CheckImages", "CollectImages", "Info"),
        *("Operations", "Wipe"),
    },
}


@pytest.mark.parametrize(
    ("rpc", "name"),
    [
        ("RunPodSandbox", "run_pod_sandbox"),
        ("ImageFsInfo", "image_fs_info"),
        ("Version", "version"),
        ("ListPodSandboxMetrics", "list_pod_sandbox_metrics"),
    ],
)
def test_an_rpc_has_one_name_in_two_spellings(rpc: str, name: str) -> None:
    assert python_name(rpc) == name


@pytest.mark.parametrize(
    ("servicer", "service"),
    [
        (RuntimeService, api_pb2.DESCRIPTOR.services_by_name["RuntimeService"]),
        (ImageService, api_pb2.DESCRIPTOR.services_by_name["ImageService"]),
        (AdminService, admin_pb2.DESCRIPTOR.services_by_name["Admin"]),
    ],
)
def test_what_is_served_is_what_has_a_method(servicer: type, service: object) -> None:
    names = [method.name for method in service.methods]  # type: ignore[attr-defined]
    served = {name for name in names if hasattr(servicer, python_name(name))}
    assert served == SERVED[service.name]  # type: ignore[attr-defined]


def test_no_method_of_a_service_is_out_of_reach() -> None:
    """A misspelt method would never be called, and nothing else would tell."""
    for servicer, name in ((RuntimeService, "RuntimeService"), (ImageService, "ImageService")):
        rpcs = {
            python_name(method.name) for method in api_pb2.DESCRIPTOR.services_by_name[name].methods
        }
        public = {
            key
            for key, value in vars(servicer).items()
            if callable(value) and not key.startswith("_")
        }
        assert public <= rpcs


def test_both_versions_of_cri_are_made_and_the_admin_service_stays_local() -> None:
    versions: list[str] = []

    def make(version: str) -> object:
        versions.append(version)
        return object()

    services = cri_services(make, make)
    assert [service.name for service in services] == [
        *("runtime.v1.RuntimeService", "runtime.v1.ImageService"),
        *("runtime.v1alpha2.RuntimeService", "runtime.v1alpha2.ImageService"),
    ]
    assert versions == ["v1", "v1", "v1alpha2", "v1alpha2"]
    assert not any(service.unix_only for service in services)
    assert admin_service(object()).unix_only
