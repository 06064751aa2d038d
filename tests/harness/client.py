"""A small CRI client: the generated stubs, short builders of requests, and functions that wait for states.

Calls are synchronous and bounded. `Client.runtime` and `Client.images` are the v1 stubs, for whatever has no shorthand
here; `Client.v1alpha2` calls the older API with the messages of its own package.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.admin.v1.admin_pb2_grpc import AdminStub
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from cri_shim._pb.cri.v1alpha2 import api_pb2_grpc as v1alpha2
from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

CALL_TIMEOUT_S = 60.0 * SLOWNESS
CHUNK_BYTES = 1 << 20
_MESSAGE_BYTES = 16 << 20
_numbers = itertools.count(1)


class V1Alpha2:
    """The stubs of `runtime.v1alpha2`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.runtime = v1alpha2.RuntimeServiceStub(channel)
        self.images = v1alpha2.ImageServiceStub(channel)


class Client:
    """One connection to a daemon's socket."""

    def __init__(self, socket: Path, *, log_dir: Path, cgroup_parent: str = "") -> None:
        self._log_dir = log_dir
        self._cgroup_parent = cgroup_parent
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                ("grpc.enable_http_proxy", 0),
                # A daemon that was killed and started again is there at once; don't back off for seconds.
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )
        self.runtime = RuntimeServiceStub(self._channel)
        self.images = ImageServiceStub(self._channel)
        self.admin = AdminStub(self._channel)
        self.health = health_pb2_grpc.HealthStub(self._channel)
        self.v1alpha2 = V1Alpha2(self._channel)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- what requests are made of -------------------------------------------------------------------------------

    def pod_config(
        self,
        name: str = "",
        *,
        namespace: str = "default",
        attempt: int = 0,
        host_network: bool = False,
        host_ports: Mapping[int, int] | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> api.PodSandboxConfig:
        """A pod as the kubelet describes one; `host_ports` maps ports of the host to ports of the pod."""
        name = name or f"pod-{next(_numbers)}"
        uid = f"uid-{name}"
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(
                name=name, namespace=namespace, uid=uid, attempt=attempt
            ),
            hostname="" if host_network else name,
            log_directory=str(self._log_dir / f"{namespace}_{name}_{uid}"),
            port_mappings=[
                api.PortMapping(protocol=api.TCP, host_port=outside, container_port=inside)
                for outside, inside in (host_ports or {}).items()
            ],
            labels=labels or {},
            annotations=annotations or {},
            linux=api.LinuxPodSandboxConfig(cgroup_parent=self._cgroup_parent),
        )
        if host_network:
            config.linux.security_context.namespace_options.network = api.NODE
        return config

    def container_config(
        self,
        image: str,
        command: Sequence[str] = (),
        *,
        name: str = "",
        attempt: int = 0,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        mounts: Sequence[api.Mount] = (),
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> api.ContainerConfig:
        """A container; its log goes where the kubelet would put it."""
        name = name or f"container-{next(_numbers)}"
        return api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name, attempt=attempt),
            image=api.ImageSpec(image=image),
            command=command,
            args=args,
            envs=[
                api.KeyValue(key=key, value=value.encode()) for key, value in (env or {}).items()
            ],
            mounts=mounts,
            labels=labels or {},
            annotations=annotations or {},
            log_path=f"{name}/{attempt}.log",
            linux=api.LinuxContainerConfig(),
        )

    # --- pods ----------------------------------------------------------------------------------------------------

    def run_pod(self, config: api.PodSandboxConfig, *, handler: str = "") -> str:
        """RunPodSandbox; the log directory is made first, as the kubelet does."""
        Path(config.log_directory).mkdir(parents=True, exist_ok=True)
        request = api.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return self.runtime.RunPodSandbox(request, timeout=CALL_TIMEOUT_S).pod_sandbox_id

    def stop_pod(self, pod: str) -> None:
        """StopPodSandbox."""
        request = api.StopPodSandboxRequest(pod_sandbox_id=pod)
        self.runtime.StopPodSandbox(request, timeout=CALL_TIMEOUT_S)

    def remove_pod(self, pod: str) -> None:
        """RemovePodSandbox."""
        request = api.RemovePodSandboxRequest(pod_sandbox_id=pod)
        self.runtime.RemovePodSandbox(request, timeout=CALL_TIMEOUT_S)

    def pod_status(self, pod: str, *, verbose: bool = False) -> api.PodSandboxStatusResponse:
        """PodSandboxStatus."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=verbose)
        return self.runtime.PodSandboxStatus(request, timeout=CALL_TIMEOUT_S)

    def pods(self) -> list[api.PodSandbox]:
        """ListPodSandbox, unfiltered."""
        return list(
            self.runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=CALL_TIMEOUT_S).items
        )

    def remove_all_pods(self) -> None:
        """Stop and remove every pod: what a test ends with."""
        for pod in self.pods():
            self.stop_pod(pod.id)
            self.remove_pod(pod.id)

    # --- containers ----------------------------------------------------------------------------------------------

    def create(
        self, pod: str, config: api.ContainerConfig, pod_config: api.PodSandboxConfig
    ) -> str:
        """CreateContainer; the log's directory is made first, as the kubelet does."""
        Path(pod_config.log_directory, config.log_path).parent.mkdir(parents=True, exist_ok=True)
        request = api.CreateContainerRequest(
            pod_sandbox_id=pod, config=config, sandbox_config=pod_config
        )
        return self.runtime.CreateContainer(request, timeout=CALL_TIMEOUT_S).container_id

    def start(self, container: str) -> None:
        """StartContainer."""
        request = api.StartContainerRequest(container_id=container)
        self.runtime.StartContainer(request, timeout=CALL_TIMEOUT_S)

    def run(self, pod: str, config: api.ContainerConfig, pod_config: api.PodSandboxConfig) -> str:
        """CreateContainer, then StartContainer."""
        container = self.create(pod, config, pod_config)
        self.start(container)
        return container

    def stop(self, container: str, *, timeout_s: int = 0) -> None:
        """StopContainer."""
        request = api.StopContainerRequest(container_id=container, timeout=timeout_s)
        self.runtime.StopContainer(request, timeout=CALL_TIMEOUT_S + timeout_s)

    def remove(self, container: str) -> None:
        """RemoveContainer."""
        request = api.RemoveContainerRequest(container_id=container)
        self.runtime.RemoveContainer(request, timeout=CALL_TIMEOUT_S)

    def status(self, container: str, *, verbose: bool = False) -> api.ContainerStatusResponse:
        """ContainerStatus."""
        request = api.ContainerStatusRequest(container_id=container, verbose=verbose)
        return self.runtime.ContainerStatus(request, timeout=CALL_TIMEOUT_S)

    def containers(self) -> list[api.Container]:
        """ListContainers, unfiltered."""
        request = api.ListContainersRequest()
        return list(self.runtime.ListContainers(request, timeout=CALL_TIMEOUT_S).containers)

    def exec(self, container: str, *command: str, timeout_s: int = 10) -> api.ExecSyncResponse:
        """ExecSync."""
        request = api.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout_s)
        return self.runtime.ExecSync(request, timeout=CALL_TIMEOUT_S + timeout_s)

    def exec_url(
        self,
        container: str,
        *command: str,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool = False,
    ) -> str:
        """Exec: where a streaming client can run a command."""
        request = api.ExecRequest(
            container_id=container,
            cmd=command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr and not tty,
            tty=tty,
        )
        return self.runtime.Exec(request, timeout=CALL_TIMEOUT_S).url

    def attach_url(
        self,
        container: str,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool = False,
    ) -> str:
        """Attach: where a streaming client can join a container's own streams."""
        request = api.AttachRequest(
            container_id=container, stdin=stdin, stdout=stdout, stderr=stderr and not tty, tty=tty
        )
        return self.runtime.Attach(request, timeout=CALL_TIMEOUT_S).url

    def port_forward_url(self, pod: str, *ports: int) -> str:
        """PortForward: where a streaming client can connect to a pod's ports."""
        request = api.PortForwardRequest(pod_sandbox_id=pod, port=ports)
        return self.runtime.PortForward(request, timeout=CALL_TIMEOUT_S).url

    def wait_exited(self, container: str, *, timeout_s: float = 10.0) -> api.ContainerStatus:
        """Wait for the container's end. Raises: TimeoutError."""
        deadline = time.monotonic() + timeout_s * SLOWNESS
        while True:
            status = self.status(container).status
            if status.state == api.CONTAINER_EXITED:
                return status
            if time.monotonic() > deadline:
                state = api.ContainerState.Name(status.state)
                raise TimeoutError(f"container {container} is {state} after {timeout_s} s")
            time.sleep(0.02)

    # --- images and the daemon itself ----------------------------------------------------------------------------

    def import_image(self, archive: Path, *, name: str = "") -> list[admin_pb2.ImportedImage]:
        """Put an archive's images into the store, through the admin service."""
        images: list[admin_pb2.ImportedImage] = []
        answers = self.admin.ImportImage(_import_requests(archive, name), timeout=CALL_TIMEOUT_S)
        for answer in answers:
            images.extend(answer.imported.images)
        return images

    def pull(self, image: str) -> str:
        """PullImage; the ID."""
        request = api.PullImageRequest(image=api.ImageSpec(image=image))
        return self.images.PullImage(request, timeout=CALL_TIMEOUT_S).image_ref

    def give_up_pull(self, image: str, *, after_s: float) -> None:
        """PullImage by a client that goes away unless it is answered soon."""
        request = api.PullImageRequest(image=api.ImageSpec(image=image))
        try:
            self.images.PullImage(request, timeout=after_s)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise

    def image_id(self, image: str) -> str | None:
        """ImageStatus: the ID, if it is there."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=image))
        return self.images.ImageStatus(request, timeout=CALL_TIMEOUT_S).image.id or None

    def remove_image(self, image: str) -> None:
        """RemoveImage."""
        request = api.RemoveImageRequest(image=api.ImageSpec(image=image))
        self.images.RemoveImage(request, timeout=CALL_TIMEOUT_S)

    def is_serving(self, *, timeout_s: float = 1.0) -> bool:
        """Whether the health service says that the daemon is ready."""
        try:
            answer = self.health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _import_requests(archive: Path, name: str) -> Iterator[admin_pb2.ImportImageRequest]:
    yield admin_pb2.ImportImageRequest(
        options=admin_pb2.ImportOptions(name=name, archive_bytes=archive.stat().st_size)
    )
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield admin_pb2.ImportImageRequest(chunk=chunk)
