"""The services below as RuntimeService sees them: protocols as narrow as what it calls, so that tests need no
kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.sandbox.stats import ContainerUsage
    from cri_shim.sandbox.store.store import Container, Sandbox


class ExecResult(Protocol):
    """What a command did."""

    @property
    def stdout(self) -> bytes:
        """What it wrote, bounded."""

    @property
    def stderr(self) -> bytes:
        """What it complained, bounded."""

    @property
    def exit_code(self) -> int:
        """128+n when signal n killed it."""


class Pods(Protocol):
    """The use cases of sandboxes."""

    async def run_pod_sandbox(self, config: api.PodSandboxConfig, handler: str) -> str:
        """Make a sandbox; returns its ID."""

    async def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop it and all its containers."""

    async def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """Take it away."""

    async def update_pod_sandbox_resources(
        self,
        sandbox_id: str,
        overhead: api.LinuxContainerResources,
        resources: api.LinuxContainerResources,
    ) -> None:
        """Take note of its new size."""

    def find(self, id_or_prefix: str) -> Sandbox:
        """The one with this ID."""

    def list_pod_sandbox(self) -> Sequence[Sandbox]:
        """All that are shown."""

    async def verbose_info(self, sandbox: Sandbox) -> Mapping[str, object]:
        """More, for a person."""


class Containers(Protocol):
    """The use cases of containers."""

    async def create_container(
        self, sandbox_id: str, config: api.ContainerConfig, sandbox_config: api.PodSandboxConfig
    ) -> str:
        """Make a container; returns its ID."""

    async def start_container(self, container_id: str) -> None:
        """Start it."""

    async def stop_container(self, container_id: str, timeout_s: int) -> None:
        """Stop it, with a grace period."""

    async def remove_container(self, container_id: str) -> None:
        """Take it away."""

    async def update_container_resources(
        self,
        container_id: str,
        resources: api.LinuxContainerResources,
        annotations: Mapping[str, str],
    ) -> None:
        """Change its limits."""

    def find(self, id_or_prefix: str) -> Container:
        """The one with this ID."""

    def list_containers(self) -> Sequence[Container]:
        """All that are shown."""

    def containers_of(self, sandbox_id: str) -> Sequence[Container]:
        """Of these, those of one sandbox."""

    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: int
    ) -> ExecResult:
        """Run a command in it; 0 seconds: no timeout."""

    async def reopen_container_log(self, container_id: str) -> None:
        """Reopen its log after a rotation."""

    async def verbose_info(self, container: Container) -> Mapping[str, object]:
        """More, for a person."""


class Stats(Protocol):
    """What containers use."""

    async def container_stats(self, containers: Sequence[Container]) -> Sequence[ContainerUsage]:
        """Usage of each of these that still is there."""


class StreamRequests(Protocol):
    """Where clients can have streams; each returns a URL for one use."""

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
        """To run a command."""

    def attach(
        self, container_id: str, *, stdin: bool, stdout: bool, stderr: bool, tty: bool
    ) -> str:
        """To join a container."""

    def port_forward(self, sandbox_id: str, ports: Sequence[int]) -> str:
        """To connect to ports of a pod."""
