"""Sandboxes and containers: an immutable record, a replaceable status, and the allowed steps between states.

Pure: no clock, no files, no tasks.

Rules:
- A record never changes after it was written. Everything that changes is in the status, which is replaced as a whole.
- CRI's state is computed from the times in the status, so that fields cannot contradict each other.
- Each allowed step is a row of `CONTAINER_STEPS` or `SANDBOX_STEPS`. Any other step is a `WrongStateError`.

    container:  creating ──commit──> created ──start──> running ──exit──> exited
                    │                    └───────exit───────────────────────^
                    └─ never listed; recovery undoes it

    A container whose program cannot be run is created without a process, and its start fails as an exit. The reason:
    kubelets retry a failed creation for ever, but back off from a container whose start fails.

    sandbox:    creating ──commit──> ready ──stop/pause died──> notready

Times are nanoseconds since the epoch, as in CRI. 0 means "has not happened".
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from cri_shim.errors import WrongStateError
from cri_shim.oci.spec.selinux import Labels

RECORD_FORMAT: Final = 1
"""Increased when older daemons would misread the documents of newer ones."""
ON_DISK: Final = msgspec.Raw(b"null")
"""Replaces `config` of a record in memory after it was written: a request may have megabytes."""


class ContainerState(StrEnum):
    """The state of a container. Clients never see `CREATING`."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class SandboxState(StrEnum):
    """The state of a sandbox. Clients never see `CREATING`."""

    CREATING = "creating"
    READY = "ready"
    NOT_READY = "notready"


class Step(StrEnum):
    """The event that moves an object from one state to the next."""

    COMMIT = "commit"
    START = "start"
    EXIT = "exit"
    STOP = "stop"


CONTAINER_STEPS: Final = {
    (ContainerState.CREATING, Step.COMMIT): ContainerState.CREATED,
    (ContainerState.CREATED, Step.START): ContainerState.RUNNING,
    (ContainerState.CREATED, Step.EXIT): ContainerState.EXITED,
    (ContainerState.RUNNING, Step.EXIT): ContainerState.EXITED,
}

SANDBOX_STEPS: Final = {
    (SandboxState.CREATING, Step.COMMIT): SandboxState.READY,
    (SandboxState.READY, Step.STOP): SandboxState.NOT_READY,
}


class Process(msgspec.Struct, frozen=True):
    """Identifies a process by its pid and its start time in clock ticks since boot, since pids are reused."""

    pid: int
    start_ticks: int


def tenant_of(namespace: str) -> str:
    """The tenant of a pod: its Kubernetes namespace. "" for a pod without one, which is a tenant of its own."""
    return f"namespace {namespace}" if namespace else ""


class PodMetadata(msgspec.Struct, frozen=True):
    """CRI's PodSandboxMetadata."""

    name: str
    namespace: str
    uid: str
    attempt: int

    @property
    def reserved_name(self) -> str:
        """The name that only one sandbox may hold. It is JSON, since the parts may contain any separator."""
        return msgspec.json.encode([self.name, self.namespace, self.uid, self.attempt]).decode()


class ContainerMetadata(msgspec.Struct, frozen=True):
    """CRI's ContainerMetadata."""

    name: str
    attempt: int

    def reserved_name(self, sandbox_id: str) -> str:
        """The name that only one container may hold."""
        return msgspec.json.encode([sandbox_id, self.name, self.attempt]).decode()


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The immutable part of a sandbox, written before the first effect."""

    format: int = RECORD_FORMAT
    id: str
    metadata: PodMetadata
    handler: str
    digest: str
    """A digest of the request, which distinguishes a retry from a different request."""
    created_at_ns: int
    boot_id: str
    cgroup_parent: str
    netns: str
    """The file at which the network namespace is pinned. "" for a pod on the node's network."""
    hostname: str
    image_id: str
    layers: tuple[str, ...]
    """Short names of the pause image's layers, topmost first. They are kept on disk while the sandbox exists."""
    labels: Labels = Labels()
    """SELinux labels of processes and files. The level is used while the record exists."""
    config: msgspec.Raw
    """CRI's PodSandboxConfig as protobuf's JSON. In memory `ON_DISK` after it was written."""

    @property
    def name(self) -> str:
        """The reserved name."""
        return self.metadata.reserved_name

    @property
    def tenant(self) -> str:
        """The tenant for `slots`, whose objects share bounds on the node's resources."""
        return tenant_of(self.metadata.namespace)

    @property
    def layers_in_use(self) -> tuple[str, ...]:
        """The layers that must be kept on disk."""
        return self.layers


class ImageVolumeRecord(msgspec.Struct, frozen=True):
    """An image that a container mounts as a volume."""

    index: int
    """The mount's index in the request."""
    image_id: str
    layers: tuple[str, ...]


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The immutable part of a container, written before the first effect."""

    format: int = RECORD_FORMAT
    id: str
    sandbox_id: str
    pod_namespace: str = ""
    """The sandbox's Kubernetes namespace. "" in records of earlier versions."""
    metadata: ContainerMetadata
    handler: str
    digest: str
    created_at_ns: int
    boot_id: str
    cgroup_parent: str
    image_id: str
    image_ref: str
    """The image reference in CRI's status: `repo@sha256:…`, else the image's ID."""
    image_name: str = ""
    """The image's name for users: its tag, else its digest, else its ID. "" in records of earlier versions."""
    layers: tuple[str, ...]
    """Short names of the image's layers, topmost first. They are kept on disk while the container exists."""
    image_volumes: tuple[ImageVolumeRecord, ...] = ()
    """Images mounted as volumes. Their layers are kept as well."""
    log_path: str
    """An absolute path, or "" for a container without a log."""
    stop_signal: int
    labels: Labels = Labels()
    """SELinux labels of processes and files."""
    config: msgspec.Raw
    """CRI's ContainerConfig as protobuf's JSON. In memory `ON_DISK` after it was written."""

    @property
    def name(self) -> str:
        """The reserved name."""
        return self.metadata.reserved_name(self.sandbox_id)

    @property
    def tenant(self) -> str:
        """The tenant of the pod for `slots`, whose objects share bounds on the node's resources."""
        return tenant_of(self.pod_namespace)

    @property
    def layers_in_use(self) -> tuple[str, ...]:
        """The layers that must be kept on disk."""
        return (*self.layers, *(layer for each in self.image_volumes for layer in each.layers))


class User(msgspec.Struct, frozen=True):
    """The user and groups of a container's first process, resolved to numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """The supplementary groups, including the primary one."""


class NetworkAttachment(msgspec.Struct, frozen=True):
    """A network to which a sandbox is, or may be, attached."""

    network: str
    ifname: str


class SandboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The changing part of a sandbox."""

    format: int = RECORD_FORMAT
    ready_at_ns: int = 0
    stopped_at_ns: int = 0
    """The time when it became not ready: it was stopped, or its pause process ended."""
    process: Process | None = None
    monitor: Process | None = None
    """The monitor of a pause container with its own kernel, or from an earlier version. Others have none."""
    attachments: tuple[NetworkAttachment, ...] = ()
    """Attachments that need a CNI DEL. They are added before ADD, and removed after DEL."""
    ips: tuple[str, ...] = ()
    torn_down: bool = False
    """Whether StopPodSandbox has removed everything except files."""
    reason: str = ""
    """Why it is not ready, for users."""
    sizing: msgspec.Raw = msgspec.Raw(b"{}")
    """CRI's LinuxPodSandboxConfig with overhead and resources of the last update, as protobuf's JSON."""

    @property
    def is_complete(self) -> bool:
        """Whether its creation has ended: it was ready once, or was given up."""
        return bool(self.ready_at_ns or self.stopped_at_ns)

    @property
    def state(self) -> SandboxState:
        """The state that the times amount to."""
        if self.stopped_at_ns:
            return SandboxState.NOT_READY
        return SandboxState.READY if self.ready_at_ns else SandboxState.CREATING

    def committed(
        self, at_ns: int, process: Process, monitor: Process | None = None
    ) -> SandboxStatus:
        """The status of a complete, ready sandbox."""
        _require_sandbox(self.state, Step.COMMIT)
        return msgspec.structs.replace(self, ready_at_ns=at_ns, process=process, monitor=monitor)

    def stopped(self, at_ns: int, reason: str) -> SandboxStatus:
        """The status of a sandbox that is not ready any more. A later reason does not replace the first one."""
        if self.state is SandboxState.NOT_READY:
            return self
        if self.state is SandboxState.READY:
            _require_sandbox(self.state, Step.STOP)
        return msgspec.structs.replace(self, stopped_at_ns=at_ns, reason=reason)


class ContainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The changing part of a container."""

    format: int = RECORD_FORMAT
    committed_at_ns: int = 0
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    process: Process | None = None
    monitor: Process | None = None
    user: User | None = None
    resources: msgspec.Raw = msgspec.Raw(b"{}")
    """CRI's LinuxContainerResources after an update, as protobuf's JSON. {} while the request's are in force."""
    pids_limit: int = 0
    """The limit that the last update set. 0 if none did."""
    start_fault: str = ""
    """The runtime's error if the program cannot be run: the container has no process, and its start will fail."""
    torn_down: bool = False
    """Whether the runtime's state and the cgroup were removed after the exit."""

    @property
    def is_complete(self) -> bool:
        """Whether its creation has ended."""
        return bool(self.committed_at_ns or self.started_at_ns or self.finished_at_ns)

    @property
    def state(self) -> ContainerState:
        """The state that the times amount to."""
        if self.finished_at_ns:
            return ContainerState.EXITED
        if self.started_at_ns:
            return ContainerState.RUNNING
        return ContainerState.CREATED if self.committed_at_ns else ContainerState.CREATING

    def committed(
        self, at_ns: int, process: Process, monitor: Process, user: User
    ) -> ContainerStatus:
        """The status of a complete container, which can be started."""
        _require_container(self.state, Step.COMMIT)
        return msgspec.structs.replace(
            self, committed_at_ns=at_ns, process=process, monitor=monitor, user=user
        )

    def unstartable(self, at_ns: int, fault: str, user: User | None) -> ContainerStatus:
        """The status of a complete container without a process, since its program cannot be run: `fault`."""
        _require_container(self.state, Step.COMMIT)
        return msgspec.structs.replace(
            self, committed_at_ns=at_ns, start_fault=fault, user=user, torn_down=True
        )

    def started(self, at_ns: int) -> ContainerStatus:
        """The status of a running container."""
        _require_container(self.state, Step.START)
        # A clock that was set back must not show a start before the creation.
        return msgspec.structs.replace(self, started_at_ns=max(at_ns, self.committed_at_ns))

    def exited(
        self, at_ns: int, exit_code: int, *, reason: str, message: str = ""
    ) -> ContainerStatus:
        """The status after the exit. `exit_code` is 128+n for signal n. A later exit does not replace the first."""
        if self.state is ContainerState.EXITED:
            return self
        _require_container(self.state, Step.EXIT)
        return msgspec.structs.replace(
            self,
            # A clock that was set back must not show an exit before the start.
            finished_at_ns=max(at_ns, self.started_at_ns, self.committed_at_ns),
            exit_code=exit_code,
            reason=reason,
            message=message,
        )


def _require_container(state: ContainerState, step: Step) -> None:
    if (state, step) not in CONTAINER_STEPS:
        raise WrongStateError(f"the container is {state}; {step} is not possible")


def _require_sandbox(state: SandboxState, step: Step) -> None:
    if (state, step) not in SANDBOX_STEPS:
        raise WrongStateError(f"the sandbox is {state}; {step} is not possible")
