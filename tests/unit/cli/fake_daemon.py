"""A daemon in memory behind a real socket: enough of CRI for the demo, and a switch for each way to go wrong."""

from __future__ import annotations

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from cri_shim._pb.admin.v1 import admin_pb2, admin_pb2_grpc
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1 import api_pb2_grpc
from cri_shim.cli import demo_requests as requests
from cri_shim.rpc.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IP = "10.1.2.3"
TIME = "2026-01-02T03:04:05.678901234+00:00"
IMAGE_ID = "sha256:" + "ab" * 32


@dataclass
class FakeDaemon:
    """What it holds, what it was asked, and what it does wrong."""

    sandboxes: dict[str, api.PodSandboxConfig] = field(default_factory=dict)
    containers: dict[str, api.ContainerConfig] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    images: dict[str, set[str]] = field(default_factory=dict)
    """Names by image ID."""
    calls: list[str] = field(default_factory=list)
    failures: dict[str, grpc.StatusCode] = field(default_factory=dict)
    on_call: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Done at the beginning of a call, before it fails if it is to fail."""
    leaves_broken_sandbox: bool = False
    """A RunPodSandbox that fails leaves its sandbox listed."""
    forgets_nothing: bool = False
    """Removals succeed and do nothing."""
    network_message: str = ""
    ips: tuple[str, ...] = (IP,)
    stdout: str | None = None
    """What the container writes instead of what it was asked to."""
    answer: str | None = None
    """What a command in the container writes instead."""
    exec_exit_code: int = 0
    exit_code_at_start: int | None = None
    exit_code_at_stop: int = 0
    cpu_ns: int | None = 25_000_000
    memory_bytes: int | None = 1 << 20
    layer_bytes: int = 4096

    def enter(self, name: str, context: grpc.ServicerContext) -> None:
        """Note a call; fail it if that is wanted."""
        self.calls.append(name)
        if (action := self.on_call.get(name)) is not None:
            action()
        if (code := self.failures.get(name)) is not None:
            context.abort(code, f"{name} is broken")

    def log_file(self, container: api.ContainerConfig) -> Path:
        """Where its container logs."""
        [config] = self.sandboxes.values()
        return Path(config.log_directory, container.log_path)


class _Runtime(api_pb2_grpc.RuntimeServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    def Status(self, request: Any, context: grpc.ServicerContext) -> api.StatusResponse:  # noqa: N802
        self._daemon.enter("Status", context)
        broken = self._daemon.network_message
        return api.StatusResponse(
            status=api.RuntimeStatus(
                conditions=[
                    api.RuntimeCondition(type="RuntimeReady", status=True),
                    api.RuntimeCondition(type="NetworkReady", status=not broken, message=broken),
                ]
            ),
            info={"cni": json.dumps({"networks": ["pods"], "ready": True})},
        )

    def RunPodSandbox(  # noqa: N802
        self, request: api.RunPodSandboxRequest, context: grpc.ServicerContext
    ) -> api.RunPodSandboxResponse:
        if self._daemon.leaves_broken_sandbox:
            self._daemon.sandboxes["5a"] = request.config
        self._daemon.enter("RunPodSandbox", context)
        self._daemon.sandboxes["5a"] = request.config
        return api.RunPodSandboxResponse(pod_sandbox_id="5a")

    def PodSandboxStatus(  # noqa: N802
        self, request: api.PodSandboxStatusRequest, context: grpc.ServicerContext
    ) -> api.PodSandboxStatusResponse:
        self._daemon.enter("PodSandboxStatus", context)
        first, *more = self._daemon.ips
        return api.PodSandboxStatusResponse(
            status=api.PodSandboxStatus(
                id=request.pod_sandbox_id,
                state=api.SANDBOX_READY,
                network=api.PodSandboxNetworkStatus(
                    ip=first, additional_ips=[api.PodIP(ip=ip) for ip in more]
                ),
            )
        )

    def ListPodSandbox(  # noqa: N802
        self, request: api.ListPodSandboxRequest, context: grpc.ServicerContext
    ) -> api.ListPodSandboxResponse:
        self._daemon.enter("ListPodSandbox", context)
        wanted = dict(request.filter.label_selector)
        return api.ListPodSandboxResponse(
            items=[
                api.PodSandbox(id=sandbox_id)
                for sandbox_id, config in self._daemon.sandboxes.items()
                if wanted.items() <= dict(config.labels).items()
            ]
        )

    def StopPodSandbox(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._daemon.enter("StopPodSandbox", context)
        return api.StopPodSandboxResponse()

    def RemovePodSandbox(  # noqa: N802
        self, request: api.RemovePodSandboxRequest, context: grpc.ServicerContext
    ) -> api.RemovePodSandboxResponse:
        self._daemon.enter("RemovePodSandbox", context)
        if not self._daemon.forgets_nothing:
            self._daemon.sandboxes.pop(request.pod_sandbox_id, None)
            self._daemon.containers.clear()
        return api.RemovePodSandboxResponse()

    def CreateContainer(  # noqa: N802
        self, request: api.CreateContainerRequest, context: grpc.ServicerContext
    ) -> api.CreateContainerResponse:
        self._daemon.enter("CreateContainer", context)
        self._daemon.containers["c0"] = request.config
        return api.CreateContainerResponse(container_id="c0")

    def StartContainer(  # noqa: N802
        self, request: api.StartContainerRequest, context: grpc.ServicerContext
    ) -> api.StartContainerResponse:
        daemon = self._daemon
        daemon.enter("StartContainer", context)
        config = daemon.containers[request.container_id]
        env = {pair.key: pair.value.decode() for pair in config.envs}
        said = daemon.stdout if daemon.stdout is not None else env["GREETING"]
        daemon.log_file(config).write_text(
            f"{TIME} stdout F {said}\n{TIME} stderr F {env['COMPLAINT']}\n"
        )
        if daemon.exit_code_at_start is None:
            daemon.running.add(request.container_id)
        return api.StartContainerResponse()

    def StopContainer(  # noqa: N802
        self, request: api.StopContainerRequest, context: grpc.ServicerContext
    ) -> api.StopContainerResponse:
        self._daemon.enter("StopContainer", context)
        self._daemon.running.discard(request.container_id)
        with self._daemon.log_file(self._daemon.containers[request.container_id]).open("a") as log:
            log.write(f"{TIME} stdout F {requests.GOODBYE}\n")
        return api.StopContainerResponse()

    def ContainerStatus(  # noqa: N802
        self, request: api.ContainerStatusRequest, context: grpc.ServicerContext
    ) -> api.ContainerStatusResponse:
        self._daemon.enter("ContainerStatus", context)
        status = api.ContainerStatus(id=request.container_id, state=api.CONTAINER_RUNNING)
        if request.container_id not in self._daemon.running:
            code = self._daemon.exit_code_at_start
            status.state = api.CONTAINER_EXITED
            status.exit_code = self._daemon.exit_code_at_stop if code is None else code
            status.reason = "Error" if status.exit_code else "Completed"
        return api.ContainerStatusResponse(status=status)

    def ListContainers(  # noqa: N802
        self, request: api.ListContainersRequest, context: grpc.ServicerContext
    ) -> api.ListContainersResponse:
        self._daemon.enter("ListContainers", context)
        return api.ListContainersResponse(
            containers=[api.Container(id=container_id) for container_id in self._daemon.containers]
        )

    def ExecSync(  # noqa: N802
        self, request: api.ExecSyncRequest, context: grpc.ServicerContext
    ) -> api.ExecSyncResponse:
        daemon = self._daemon
        daemon.enter("ExecSync", context)
        [config] = daemon.sandboxes.values()
        addresses = "".join(
            f"    inet{'6' if ':' in ip else ''} {ip}/{64 if ':' in ip else 24} scope global eth0\n"
            for ip in daemon.ips
        )
        said = (
            daemon.answer
            if daemon.answer is not None
            else f"{config.hostname}\n{requests.NOBODY}\n2: eth0@if9: <UP>\n{addresses}"
        )
        return api.ExecSyncResponse(
            stdout=said.encode(), stderr=b"oh no\n", exit_code=daemon.exec_exit_code
        )

    def ContainerStats(  # noqa: N802
        self, request: api.ContainerStatsRequest, context: grpc.ServicerContext
    ) -> api.ContainerStatsResponse:
        daemon = self._daemon
        daemon.enter("ContainerStats", context)
        stats = api.ContainerStats(
            writable_layer=api.FilesystemUsage(used_bytes=api.UInt64Value(value=daemon.layer_bytes))
        )
        if daemon.cpu_ns is not None:
            stats.cpu.usage_core_nano_seconds.SetInParent()
            stats.cpu.usage_core_nano_seconds.value = daemon.cpu_ns
        if daemon.memory_bytes is not None:
            stats.memory.usage_bytes.SetInParent()
            stats.memory.usage_bytes.value = daemon.memory_bytes
        return api.ContainerStatsResponse(stats=stats)


class _Images(api_pb2_grpc.ImageServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    def ListImages(self, request: Any, context: grpc.ServicerContext) -> api.ListImagesResponse:  # noqa: N802
        self._daemon.enter("ListImages", context)
        return api.ListImagesResponse(
            images=[
                api.Image(id=image_id, repo_tags=sorted(names), size=2 << 20)
                for image_id, names in self._daemon.images.items()
            ]
        )

    def RemoveImage(  # noqa: N802
        self, request: api.RemoveImageRequest, context: grpc.ServicerContext
    ) -> api.RemoveImageResponse:
        self._daemon.enter("RemoveImage", context)
        for image_id, names in list(self._daemon.images.items()):
            if request.image.image in names and not self._daemon.forgets_nothing:
                del self._daemon.images[image_id]
        return api.RemoveImageResponse()


class _Admin(admin_pb2_grpc.AdminServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    def Info(self, request: Any, context: grpc.ServicerContext) -> admin_pb2.InfoResponse:  # noqa: N802
        self._daemon.enter("Info", context)
        return admin_pb2.InfoResponse(
            version="1.2.3", handlers=[admin_pb2.HandlerInfo(name="runc", version="9.9")]
        )

    def ImportImage(  # noqa: N802
        self,
        request_iterator: Iterator[admin_pb2.ImportImageRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[admin_pb2.ImportImageResponse]:
        archive = b"".join(request.chunk for request in request_iterator)
        self._daemon.enter("ImportImage", context)
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            index = tar.extractfile("index.json")
            assert index is not None
            annotations = json.load(index)["manifests"][0]["annotations"]
        [name] = annotations.values()
        self._daemon.images.setdefault(IMAGE_ID, set()).add(name)
        yield admin_pb2.ImportImageResponse(
            progress=admin_pb2.ImportProgress(step="unpacking layer 1 of 1")
        )
        yield admin_pb2.ImportImageResponse(
            imported=admin_pb2.ImportedImages(
                images=[admin_pb2.ImportedImage(id=IMAGE_ID, names=[name])]
            )
        )


@contextmanager
def serving(daemon: FakeDaemon, directory: Path) -> Iterator[Client]:
    """A client of `daemon`, over a socket in `directory`."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(
        _Runtime(daemon),  # type: ignore[abstract]  # what is missing answers UNIMPLEMENTED
        server,
    )
    api_pb2_grpc.add_ImageServiceServicer_to_server(
        _Images(daemon),  # type: ignore[abstract]
        server,
    )
    admin_pb2_grpc.add_AdminServicer_to_server(
        _Admin(daemon),  # type: ignore[abstract]
        server,
    )
    socket_path = directory / "s.sock"
    server.add_insecure_port(f"unix:{socket_path}")
    server.start()
    try:
        with Client(socket_path) as client:
            yield client
    finally:
        server.stop(None).wait()
