"""Protocols of the `sandbox` services that RuntimeService calls, so that its tests need no kernel.

They list only what RuntimeService uses. Errors are those of the implementations in `sandbox`; each method with an ID
raises NotFoundError for an unknown one, unless it says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.sandbox.container_events import ContainerEvent, Subscription
    from cri_shim.sandbox.cri_metrics.families import Family
    from cri_shim.sandbox.cri_metrics.readings import ContainerReading, PodReading
    from cri_shim.sandbox.pod_stats import PodUsage
    from cri_shim.sandbox.stats import ContainerUsage
    from cri_shim.sandbox.store.store import Container, Sandbox


class ExecResult(Protocol):
    """The outcome of a command."""

    @property
    def stdout(self) -> bytes:
        """The command's standard output, bounded."""

    @property
    def stderr(self) -> bytes:
        """The command's standard error, bounded."""

    @property
    def exit_code(self) -> int:
        """The exit code; 128+n if signal n killed the command."""


class Pods(Protocol):
    """The calls about sandboxes."""

    async def run_pod_sandbox(self, config: api.PodSandboxConfig, handler: str) -> str:
        """Create and start a sandbox; returns its ID."""

    async def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop a sandbox and its containers. An unknown ID is a success."""

    async def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """Remove a sandbox and its containers. An unknown ID is a success."""

    async def update_pod_sandbox_resources(
        self,
        sandbox_id: str,
        overhead: api.LinuxContainerResources,
        resources: api.LinuxContainerResources,
    ) -> None:
        """Note a pod's new resources and overhead."""

    def find(self, id_or_prefix: str) -> Sandbox:
        """The sandbox with this ID or prefix. Raises InvalidArgumentError for a prefix of several."""

    def list_pod_sandbox(self) -> Sequence[Sandbox]:
        """All sandboxes whose creation is complete."""

    async def verbose_info(self, sandbox: Sandbox) -> Mapping[str, object]:
        """The document of a verbose status."""


class Containers(Protocol):
    """The calls about containers."""

    async def create_container(
        self, sandbox_id: str, config: api.ContainerConfig, sandbox_config: api.PodSandboxConfig
    ) -> str:
        """Create a container; returns its ID."""

    async def start_container(self, container_id: str) -> None:
        """Start a created container."""

    async def stop_container(self, container_id: str, timeout_s: int) -> None:
        """Stop a container; SIGKILL after `timeout_s` seconds. An unknown ID is a success."""

    async def remove_container(self, container_id: str) -> None:
        """Remove a container. An unknown ID is a success."""

    async def update_container_resources(
        self,
        container_id: str,
        resources: api.LinuxContainerResources,
        annotations: Mapping[str, str],
    ) -> None:
        """Change the resource limits of a container."""

    def find(self, id_or_prefix: str) -> Container:
        """The container with this ID or prefix. Raises InvalidArgumentError for a prefix of several."""

    def list_containers(self) -> Sequence[Container]:
        """All containers whose creation is complete."""

    def containers_of(self, sandbox_id: str) -> Sequence[Container]:
        """The containers of one sandbox whose creation is complete, the oldest first."""

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: int
    ) -> ExecResult:
        """Run a command in a container; `timeout_s` 0 means no timeout."""

    async def reopen_container_log(self, container_id: str) -> None:
        """Open a container's log file anew after a rotation."""

    async def verbose_info(self, container: Container) -> Mapping[str, object]:
        """The document of a verbose status."""


class Stats(Protocol):
    """Resource usage of containers."""

    async def container_stats(self, containers: Sequence[Container]) -> Sequence[ContainerUsage]:
        """The usage of each of these containers that still exists."""


class PodStats(Protocol):
    """Resource usage of pods."""

    async def pod_sandbox_stats(self, sandboxes: Sequence[Sandbox]) -> Sequence[PodUsage]:
        """The usage of each of these sandboxes that is ready, and still is when it has been read."""


class Events(Protocol):
    """The container events of this node."""

    @property
    def enabled(self) -> bool:
        """Whether there are any for clients."""

    async def wait_until_open(self) -> None:
        """Return if subscriptions are taken; raise a CriShimError that says when, or why not."""

    def subscribed(self) -> AbstractContextManager[Subscription]:
        """A subscription to every event while the block runs."""

    def sandbox(self, event: ContainerEvent) -> Sandbox | None:
        """The event's sandbox as it is now; None once it was removed."""

    def containers(self, event: ContainerEvent) -> Sequence[Container]:
        """The containers of the event's sandbox as they are now, the oldest first."""


class PodMetrics(Protocol):
    """The metrics of pods and containers."""

    container_families: Sequence[Family[ContainerReading]]
    """The metrics of containers that are served."""
    pod_families: Sequence[Family[PodReading]]

    async def pod_sandbox_metrics(self, sandboxes: Sequence[Sandbox]) -> Sequence[PodReading]:
        """What was read of each of these sandboxes that is ready, and still is when it has been read."""


class StreamRequests(Protocol):
    """The streaming calls; each returns a one-time URL."""

    def exec(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        tty: bool,
    ) -> str:
        """A URL to run a command in a container."""

    def attach(
        self, container_id: str, *, stdin: bool, stdout: bool, stderr: bool, tty: bool
    ) -> str:
        """A URL to attach to a container's streams."""

    def port_forward(self, sandbox_id: str, ports: Sequence[int]) -> str:
        """A URL to connect to ports of a pod."""
