"""CRI's RuntimeService: one short method per RPC that checks required fields, calls `sandbox` and builds the response.

The module is as long as the list of RPCs.

Rules:
- Methods decide nothing about pods or containers and keep no state.
- `handlers` answers UNIMPLEMENTED for an RPC without a method here.
- The collaborators are protocols that list only what is called here (`use_cases`).
- Methods raise what their collaborators raise; `status` maps the class of the error to a gRPC code.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog

import cri_shim
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.background import uninterrupted
from cri_shim.errors import (
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    WrongStateError,
)
from cri_shim.rpc import translate_containers as containers_
from cri_shim.rpc import translate_metrics as metrics_
from cri_shim.rpc import translate_pods as pods_
from cri_shim.rpc import translate_stats as stats_
from cri_shim.rpc.encoded import Encoded, joined
from cri_shim.rpc.fields import require
from cri_shim.rpc.pieces import send_in_pieces
from cri_shim.rpc.translate_events import container_event

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from cri_shim.rpc.pieces import Send
    from cri_shim.rpc.use_cases import (
        Containers,
        Events,
        PodMetrics,
        Pods,
        PodStats,
        Stats,
        StreamRequests,
    )
    from cri_shim.sandbox.pod_stats import PodUsage
    from cri_shim.sandbox.stats import ContainerUsage

log = structlog.get_logger()

KUBELET_API_VERSION: Final = "0.1.0"
"""The value of `version` that kubelet expects in VersionResponse; it has stayed the same in all versions of CRI."""
MAX_SECONDS: Final = 1 << 31
"""Longer grace periods and timeouts are reduced to this (68 years), which asyncio's timers can represent."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of RuntimeStatus. If it is not `ok`, `reason` (one CamelCase word) and `message` say why."""

    ok: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class HandlerFacts:
    """A runtime handler and its features, for Status."""

    name: str
    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The content of a StatusResponse."""

    runtime: Condition
    network: Condition
    handlers: Sequence[HandlerFacts] = ()
    """The handlers that work. The default handler is listed also as "", the name that pods without a handler use."""
    supplemental_groups_policy: bool = False
    user_namespaces_host_network: bool = False
    mount_options: bool = False


class Node(Protocol):
    """The node's and daemon's status and configuration."""

    def status(self) -> NodeStatus:
        """The status at this moment."""

    def info(self) -> Mapping[str, object]:
        """The documents of a verbose Status, by name: the effective configuration, the last CNI load and others."""

    def update_pod_cidr(self, pod_cidr: str) -> None:
        """Note the node's pod address ranges: CIDRs, separated by commas."""

    def uses_systemd_cgroups(self) -> bool:
        """Whether systemd makes the pods' cgroups, and not cri-shim itself."""


@dataclass(frozen=True, slots=True)
class RuntimeService:
    """The RPCs of `runtime.v1.RuntimeService` and `runtime.v1alpha2.RuntimeService`."""

    pods: Pods
    containers: Containers
    stats: Stats
    pod_stats: PodStats
    pod_metrics: PodMetrics
    streams: StreamRequests
    events: Events
    node: Node
    layers_mountpoint: Path
    """A directory on the file system of the writable layers, the same as in ImageFsInfo's response."""
    api_version: str = "v1"

    # --- the server ----------------------------------------------------------------------------------------------

    async def version(self, request: api.VersionRequest) -> api.VersionResponse:
        """Name and version of this runtime, and the API version of the service that was called."""
        return api.VersionResponse(
            version=KUBELET_API_VERSION,
            runtime_name="cri-shim",
            runtime_version=cri_shim.__version__,
            runtime_api_version=self.api_version,
        )

    async def status(self, request: api.StatusRequest) -> api.StatusResponse:
        """Whether the runtime and the pod network are ready, and which features the handlers have."""
        status = self.node.status()
        response = api.StatusResponse(
            status=api.RuntimeStatus(
                conditions=[
                    _condition("RuntimeReady", status.runtime),
                    _condition("NetworkReady", status.network),
                ]
            ),
            features=api.RuntimeFeatures(
                supplemental_groups_policy=status.supplemental_groups_policy,
                user_namespaces_host_network=status.user_namespaces_host_network,
                mount_options=status.mount_options,
            ),
        )
        for handler in status.handlers:
            response.runtime_handlers.add(
                name=handler.name,
                features=api.RuntimeHandlerFeatures(
                    recursive_read_only_mounts=handler.recursive_read_only_mounts,
                    user_namespaces=handler.user_namespaces,
                ),
            )
        if request.verbose:
            for key, document in self.node.info().items():
                response.info[key] = json_text(document)
        return response

    async def runtime_config(self, request: api.RuntimeConfigRequest) -> api.RuntimeConfigResponse:
        """The cgroup driver in use. Kubelet adopts it, so that both write to the same cgroups."""
        driver = api.SYSTEMD if self.node.uses_systemd_cgroups() else api.CGROUPFS
        return api.RuntimeConfigResponse(linux=api.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def update_runtime_config(
        self, request: api.UpdateRuntimeConfigRequest
    ) -> api.UpdateRuntimeConfigResponse:
        """Note the node's pod address ranges, for CNI configuration templates."""
        self.node.update_pod_cidr(request.runtime_config.network_config.pod_cidr)
        return api.UpdateRuntimeConfigResponse()

    # --- sandboxes -----------------------------------------------------------------------------------------------

    async def run_pod_sandbox(self, request: api.RunPodSandboxRequest) -> api.RunPodSandboxResponse:
        """Create and start a pod's sandbox."""
        require(
            request,
            "config",
            "config.metadata",
            "config.metadata.name",
            "config.metadata.namespace",
            "config.metadata.uid",
        )
        sandbox_id = await self.pods.run_pod_sandbox(request.config, request.runtime_handler)
        return api.RunPodSandboxResponse(pod_sandbox_id=sandbox_id)

    async def stop_pod_sandbox(
        self, request: api.StopPodSandboxRequest
    ) -> api.StopPodSandboxResponse:
        """Stop a sandbox and its containers."""
        require(request, "pod_sandbox_id")
        await self.pods.stop_pod_sandbox(request.pod_sandbox_id)
        return api.StopPodSandboxResponse()

    async def remove_pod_sandbox(
        self, request: api.RemovePodSandboxRequest
    ) -> api.RemovePodSandboxResponse:
        """Remove a sandbox and its containers."""
        require(request, "pod_sandbox_id")
        await self.pods.remove_pod_sandbox(request.pod_sandbox_id)
        return api.RemovePodSandboxResponse()

    async def update_pod_sandbox_resources(
        self, request: api.UpdatePodSandboxResourcesRequest
    ) -> api.UpdatePodSandboxResourcesResponse:
        """Note a pod's new resources and overhead."""
        require(request, "pod_sandbox_id")
        await self.pods.update_pod_sandbox_resources(
            request.pod_sandbox_id, request.overhead, request.resources
        )
        return api.UpdatePodSandboxResourcesResponse()

    async def pod_sandbox_status(
        self, request: api.PodSandboxStatusRequest
    ) -> api.PodSandboxStatusResponse:
        """Show one sandbox and its containers, the newest container first.

        `timestamp` belongs to container events (KEP-3386): a kubelet that gets them takes `containers_statuses` for the
        pod's status of that time, and the first container of a name for the current one.
        """
        require(request, "pod_sandbox_id")
        sandbox = self.pods.find(request.pod_sandbox_id)
        # Collecting the details takes a while. They come first, so that the status is not older than they are.
        info = await self.pods.verbose_info(sandbox) if request.verbose else None
        response = api.PodSandboxStatusResponse(
            status=pods_.pod_sandbox_status(sandbox),
            containers_statuses=[
                containers_.container_status(container)
                for container in reversed(self.containers.containers_of(sandbox.id))
            ],
            timestamp=time.time_ns() if self.events.enabled else 0,
        )
        if info is not None:
            response.info["info"] = json_text(info)
        return response

    async def list_pod_sandbox(self, request: api.ListPodSandboxRequest) -> Encoded:
        """List the sandboxes that match the filter."""
        chosen = pods_.selected(self.pods.list_pod_sandbox(), request.filter)
        return joined(chosen, pods_.list_entry)

    async def stream_pod_sandboxes(
        self, request: api.StreamPodSandboxesRequest, send: Send
    ) -> None:
        """List sandboxes in several messages, for lists that exceed one message."""
        chosen = pods_.selected(self.pods.list_pod_sandbox(), request.filter)
        await send_in_pieces(map(pods_.list_entry, chosen), send)

    # --- containers ----------------------------------------------------------------------------------------------

    async def create_container(
        self, request: api.CreateContainerRequest
    ) -> api.CreateContainerResponse:
        """Create a container in a sandbox."""
        require(
            request,
            "pod_sandbox_id",
            "config",
            "config.metadata",
            "config.metadata.name",
            "config.image",
            "config.image.image",
        )
        container_id = await self.containers.create_container(
            request.pod_sandbox_id, request.config, request.sandbox_config
        )
        return api.CreateContainerResponse(container_id=container_id)

    async def start_container(
        self, request: api.StartContainerRequest
    ) -> api.StartContainerResponse:
        """Start a created container."""
        require(request, "container_id")
        await self.containers.start_container(request.container_id)
        return api.StartContainerResponse()

    async def stop_container(self, request: api.StopContainerRequest) -> api.StopContainerResponse:
        """Stop a container: its stop signal, then SIGKILL after `timeout` seconds."""
        require(request, "container_id")
        # A negative timeout counts as 0: kubelets have sent it, and an error here would leave the pod terminating.
        timeout_s = min(max(request.timeout, 0), MAX_SECONDS)
        await self.containers.stop_container(request.container_id, timeout_s)
        return api.StopContainerResponse()

    async def remove_container(
        self, request: api.RemoveContainerRequest
    ) -> api.RemoveContainerResponse:
        """Remove a container; a running one is killed first."""
        require(request, "container_id")
        await self.containers.remove_container(request.container_id)
        return api.RemoveContainerResponse()

    async def list_containers(self, request: api.ListContainersRequest) -> Encoded:
        """List the containers that match the filter."""
        chosen = containers_.selected(self.containers.list_containers(), request.filter)
        return joined(chosen, containers_.list_entry)

    async def stream_containers(self, request: api.StreamContainersRequest, send: Send) -> None:
        """List containers in several messages, for lists that exceed one message."""
        chosen = containers_.selected(self.containers.list_containers(), request.filter)
        await send_in_pieces(map(containers_.list_entry, chosen), send)

    async def container_status(
        self, request: api.ContainerStatusRequest
    ) -> api.ContainerStatusResponse:
        """Show one container."""
        require(request, "container_id")
        container = self.containers.find(request.container_id)
        info = await self.containers.verbose_info(container) if request.verbose else None
        response = api.ContainerStatusResponse(status=containers_.container_status(container))
        if info is not None:
            response.info["info"] = json_text(info)
        return response

    async def update_container_resources(
        self, request: api.UpdateContainerResourcesRequest
    ) -> api.UpdateContainerResourcesResponse:
        """Change the resource limits of a container."""
        require(request, "container_id")
        if request.HasField("windows"):
            raise InvalidArgumentError(
                "UpdateContainerResourcesRequest: windows is set, but this node runs Linux"
            )
        await self.containers.update_container_resources(
            request.container_id, request.linux, request.annotations
        )
        return api.UpdateContainerResourcesResponse()

    async def exec_sync(self, request: api.ExecSyncRequest) -> api.ExecSyncResponse:
        """Run a command in a container and return its output and exit code. A `timeout` of 0 seconds means none."""
        require(request, "container_id", "cmd")
        if request.timeout < 0:
            raise InvalidArgumentError(
                f"ExecSyncRequest: timeout is {request.timeout} s; it must be 0 (no timeout) or more"
            )
        result = await self.containers.exec_sync(
            request.container_id, request.cmd, min(request.timeout, MAX_SECONDS)
        )
        return api.ExecSyncResponse(
            stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code
        )

    async def reopen_container_log(
        self, request: api.ReopenContainerLogRequest
    ) -> api.ReopenContainerLogResponse:
        """Open a container's log file anew, after kubelet renamed it. Returns once the new file exists."""
        require(request, "container_id")
        await self.containers.reopen_container_log(request.container_id)
        return api.ReopenContainerLogResponse()

    # --- streams -------------------------------------------------------------------------------------------------

    async def exec(self, request: api.ExecRequest) -> api.ExecResponse:
        """Return a one-time URL at which a client can run a command in a container."""
        require(request, "container_id", "cmd")
        url = self.streams.exec(
            request.container_id,
            list(request.cmd),
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            tty=request.tty,
        )
        return api.ExecResponse(url=url)

    async def attach(self, request: api.AttachRequest) -> api.AttachResponse:
        """Return a one-time URL at which a client can attach to a container's streams."""
        require(request, "container_id")
        url = self.streams.attach(
            request.container_id,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            tty=request.tty,
        )
        return api.AttachResponse(url=url)

    async def port_forward(self, request: api.PortForwardRequest) -> api.PortForwardResponse:
        """Return a one-time URL at which a client can connect to a pod's ports."""
        require(request, "pod_sandbox_id")
        url = self.streams.port_forward(request.pod_sandbox_id, list(request.port))
        return api.PortForwardResponse(url=url)

    # --- events --------------------------------------------------------------------------------------------------

    async def get_container_events(self, request: api.GetEventsRequest, send: Send) -> None:
        """Tell of each step of each pod and container from now on. Only an error or the client ends the stream."""
        await self.events.wait_until_open()
        with self.events.subscribed() as subscription:
            while True:
                event = await subscription.next()
                message = container_event(
                    event, self.events.sandbox(event), self.events.containers(event)
                )
                if message is not None:
                    await send(message)

    # --- statistics ----------------------------------------------------------------------------------------------

    async def container_stats(
        self, request: api.ContainerStatsRequest
    ) -> api.ContainerStatsResponse:
        """Resource usage of one container."""
        require(request, "container_id")
        container = self.containers.find(request.container_id)
        usages = await self.stats.container_stats([container])
        if not usages:
            raise NotFoundError("container", request.container_id, "it was removed during the call")
        return api.ContainerStatsResponse(stats=self._container_stats(usages[0]))

    async def list_container_stats(
        self, request: api.ListContainerStatsRequest
    ) -> api.ListContainerStatsResponse:
        """Resource usage of the containers that match the filter."""
        chosen = containers_.selected(self.containers.list_containers(), request.filter)
        usages = await self.stats.container_stats(chosen)
        return api.ListContainerStatsResponse(stats=map(self._container_stats, usages))

    async def stream_container_stats(
        self, request: api.StreamContainerStatsRequest, send: Send
    ) -> None:
        """Resource usage in several messages, for lists that exceed one message."""
        chosen = containers_.selected(self.containers.list_containers(), request.filter)
        usages = await self.stats.container_stats(chosen)
        await send_in_pieces(map(self._streamed, usages), send)

    async def pod_sandbox_stats(
        self, request: api.PodSandboxStatsRequest
    ) -> api.PodSandboxStatsResponse:
        """Resource usage of one sandbox and its containers."""
        require(request, "pod_sandbox_id")
        sandbox = self.pods.find(request.pod_sandbox_id)
        usages = await self.pod_stats.pod_sandbox_stats([sandbox])
        if not usages:
            raise WrongStateError(f"sandbox {sandbox.id} is not ready: nothing of it uses anything")
        return api.PodSandboxStatsResponse(stats=self._pod_stats(usages[0]))

    async def list_pod_sandbox_stats(
        self, request: api.ListPodSandboxStatsRequest
    ) -> api.ListPodSandboxStatsResponse:
        """Resource usage of the ready sandboxes that match the filter, and of their containers."""
        chosen = pods_.selected(self.pods.list_pod_sandbox(), request.filter)
        usages = await self.pod_stats.pod_sandbox_stats(chosen)
        return api.ListPodSandboxStatsResponse(stats=map(self._pod_stats, usages))

    async def stream_pod_sandbox_stats(
        self, request: api.StreamPodSandboxStatsRequest, send: Send
    ) -> None:
        """Resource usage of sandboxes in several messages, for lists that exceed one message."""
        chosen = pods_.selected(self.pods.list_pod_sandbox(), request.filter)
        usages = await self.pod_stats.pod_sandbox_stats(chosen)
        await send_in_pieces(map(self._streamed_pod, usages), send)

    # --- metrics -------------------------------------------------------------------------------------------------

    async def list_metric_descriptors(
        self, request: api.ListMetricDescriptorsRequest
    ) -> api.ListMetricDescriptorsResponse:
        """Names, meanings and labels of the metrics that are served. A kubelet asks once, at its start."""
        self._require_metrics()
        served = self.pod_metrics
        return api.ListMetricDescriptorsResponse(
            descriptors=[
                *map(metrics_.descriptor, served.pod_families),
                *map(metrics_.descriptor, served.container_families),
            ]
        )

    async def list_pod_sandbox_metrics(self, request: api.ListPodSandboxMetricsRequest) -> Encoded:
        """The metrics of all ready sandboxes and their containers."""
        entries = await self._metrics_entries()
        return Encoded(await uninterrupted(b"".join, entries))

    async def stream_pod_sandbox_metrics(
        self, request: api.StreamPodSandboxMetricsRequest, send: Send
    ) -> None:
        """The metrics in several messages, for lists that exceed one message."""
        await send_in_pieces(await self._metrics_entries(), send)

    async def _metrics_entries(self) -> Iterator[bytes]:
        """A generator, whose entries are encoded as they are taken."""
        self._require_metrics()
        metrics = self.pod_metrics
        readings = await metrics.pod_sandbox_metrics(self.pods.list_pod_sandbox())
        return (
            metrics_.pod_entry(each, metrics.pod_families, metrics.container_families)
            for each in readings
        )

    def _require_metrics(self) -> None:
        if not self.pod_metrics.pod_families and not self.pod_metrics.container_families:
            raise UnsupportedError(
                "metrics of pods are off: stats.metrics in the daemon's configuration names no group"
            )

    def _container_stats(self, usage: ContainerUsage) -> api.ContainerStats:
        return stats_.container_stats(usage, mountpoint=str(self.layers_mountpoint))

    def _pod_stats(self, usage: PodUsage) -> api.PodSandboxStats:
        return stats_.pod_stats(usage, mountpoint=str(self.layers_mountpoint))

    def _streamed(self, usage: ContainerUsage) -> bytes:
        return api.StreamContainerStatsResponse(
            container_stats=[self._container_stats(usage)]
        ).SerializeToString()

    def _streamed_pod(self, usage: PodUsage) -> bytes:
        return api.StreamPodSandboxStatsResponse(
            pod_sandbox_stats=[self._pod_stats(usage)]
        ).SerializeToString()


def json_text(document: object) -> str:
    """Encode a document of a verbose response. Values without a JSON type are written as `str` gives them."""
    return msgspec.json.encode(document, enc_hook=str).decode()


def _condition(type_: str, condition: Condition) -> api.RuntimeCondition:
    return api.RuntimeCondition(
        type=type_, status=condition.ok, reason=condition.reason, message=condition.message
    )
