"""The older API, called by a client that knows nothing else: the same life cycle, the same objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as v1
from cri_shim._pb.cri.v1alpha2 import api_pb2 as api
from tests.integration.scene import Pod, refused, wait_until, written

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration


def pod_config(daemon: Daemon, name: str = "old-client") -> api.PodSandboxConfig:
    log_dir = daemon.pod_log_dir / name
    log_dir.mkdir(exist_ok=True)
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, namespace="default", uid=f"uid-{name}"),
        hostname=name,
        log_directory=str(log_dir),
        labels={"app": "old"},
        linux=api.LinuxPodSandboxConfig(cgroup_parent=daemon.cgroup_parent),
    )


def test_whole_life_of_a_pod(client: Client, daemon: Daemon, image: str) -> None:
    runtime: Any = client.v1alpha2.runtime
    config = pod_config(daemon)
    pod = runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id
    status = runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    assert status.state == api.SANDBOX_READY
    assert status.network.ip
    assert dict(status.labels) == {"app": "old"}
    found = runtime.ListPodSandbox(
        api.ListPodSandboxRequest(filter=api.PodSandboxFilter(label_selector={"app": "old"}))
    ).items
    assert [entry.id for entry in found] == [pod]

    script = "echo $COLOUR; while ! test -e /enough; do sleep 0.05; done; exit 5"
    container_config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="worker"),
        image=api.ImageSpec(image=image),
        command=["sh", "-c", script],
        envs=[api.KeyValue(key="COLOUR", value="blü")],
        log_path="worker.log",
    )
    container = runtime.CreateContainer(
        api.CreateContainerRequest(
            pod_sandbox_id=pod, config=container_config, sandbox_config=config
        )
    ).container_id
    runtime.StartContainer(api.StartContainerRequest(container_id=container))
    answer = runtime.ExecSync(
        api.ExecSyncRequest(container_id=container, cmd=["hostname"], timeout=10)
    )
    assert (answer.stdout, answer.exit_code) == (b"old-client\n", 0)
    stats = runtime.ContainerStats(api.ContainerStatsRequest(container_id=container)).stats
    assert stats.memory.working_set_bytes.value > 0
    assert len(runtime.ListContainerStats(api.ListContainerStatsRequest()).stats) == 1
    runtime.ReopenContainerLog(api.ReopenContainerLogRequest(container_id=container))
    runtime.ExecSync(api.ExecSyncRequest(container_id=container, cmd=["touch", "/enough"]))

    def ended() -> api.ContainerStatus | None:
        request = api.ContainerStatusRequest(container_id=container)
        status: api.ContainerStatus = runtime.ContainerStatus(request).status
        return status if status.state == api.CONTAINER_EXITED else None

    wait_until(ended)
    last = ended()
    assert last is not None
    assert (last.exit_code, last.reason) == (5, "Error")
    runtime.StopContainer(api.StopContainerRequest(container_id=container, timeout=1))
    runtime.RemoveContainer(api.RemoveContainerRequest(container_id=container))
    runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod))
    runtime.RemovePodSandbox(api.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert list(runtime.ListPodSandbox(api.ListPodSandboxRequest()).items) == []
    assert list(runtime.ListContainers(api.ListContainersRequest()).containers) == []


def test_log_of_a_container_is_the_same(client: Client, daemon: Daemon, image: str) -> None:
    runtime: Any = client.v1alpha2.runtime
    config = pod_config(daemon, "old-log")
    pod = runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id
    container = runtime.CreateContainer(
        api.CreateContainerRequest(
            pod_sandbox_id=pod,
            config=api.ContainerConfig(
                metadata=api.ContainerMetadata(name="worker"),
                image=api.ImageSpec(image=image),
                command=["sh", "-c", "echo $COLOUR"],
                envs=[api.KeyValue(key="COLOUR", value="blü")],
                log_path="worker.log",
            ),
            sandbox_config=config,
        )
    ).container_id
    runtime.StartContainer(api.StartContainerRequest(container_id=container))
    client.wait_exited(container)
    assert written(Path(config.log_directory, "worker.log")) == "blü\n".encode()


def test_both_versions_see_the_same_pods(client: Client, daemon: Daemon, image: str) -> None:
    runtime: Any = client.v1alpha2.runtime
    pod = Pod.run(client, image)
    old = runtime.RunPodSandbox(api.RunPodSandboxRequest(config=pod_config(daemon))).pod_sandbox_id
    mine = [entry.id for entry in runtime.ListPodSandbox(api.ListPodSandboxRequest()).items]
    assert mine == [entry.id for entry in client.pods()] == [pod.id, old]
    container = pod.sleeper()
    runtime.StopContainer(api.StopContainerRequest(container_id=container))
    assert client.status(container).status.state == v1.CONTAINER_EXITED


def test_version_and_status_answer_for_the_older_api(client: Client) -> None:
    runtime: Any = client.v1alpha2.runtime
    version = runtime.Version(api.VersionRequest())
    assert (version.runtime_name, version.runtime_api_version) == ("cri-shim", "v1alpha2")
    newer = client.runtime.Version(v1.VersionRequest())
    assert newer.runtime_api_version == "v1"
    conditions = runtime.Status(api.StatusRequest()).status.conditions
    assert {c.type: c.status for c in conditions} == {"RuntimeReady": True, "NetworkReady": True}


def test_images_of_the_older_api(client: Client, image: str) -> None:
    images: Any = client.v1alpha2.images
    (known,) = images.ListImages(
        api.ListImagesRequest(filter=api.ImageFilter(image=api.ImageSpec(image=image)))
    ).images
    assert image in known.repo_tags
    found = images.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image=known.id))).image
    assert found.id == known.id
    (usage,) = images.ImageFsInfo(api.ImageFsInfoRequest()).image_filesystems
    assert usage.used_bytes.value > 0


def test_refusals_are_the_same(client: Client) -> None:
    runtime: Any = client.v1alpha2.runtime
    with refused(grpc.StatusCode.NOT_FOUND, "0" * 64):
        runtime.ContainerStatus(api.ContainerStatusRequest(container_id="0" * 64))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "config"):
        runtime.RunPodSandbox(api.RunPodSandboxRequest())
