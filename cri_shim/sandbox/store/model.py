"""Sandboxes and containers: frozen identity, replaceable status, the legal steps between states.

Pure: no clock, no files, no tasks. Rules:
- A record never changes once written; what changes is in the status, which is replaced as a whole.
- CRI's state is computed from the status' times, so that fields can't contradict each other.
- Every step between states is a row of `CONTAINER_STEPS` or `SANDBOX_STEPS`; anything else is a `WrongStateError`.

    container:  creating ──commit──> created ──start──> running ──exit──> exited
                    │                    └───────exit───────────────────────^
                    └─ never listed; recovery undoes it

    A container whose program can't be run is created all the same, without a process, and its start is its exit:
    kubelets try a failed creation again for ever, but count and space out starts that fail.

    sandbox:    creating ──commit──> ready ──stop/pause died──> notready

Times are nanoseconds since the epoch, as CRI counts; 0 means "has not happened".
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from cri_shim.errors import WrongStateError
from cri_shim.oci.spec.selinux import Labels

RECORD_FORMAT: Final = 1
"""Raised when an older daemon could misread what a newer one writes."""
ON_DISK: Final = msgspec.Raw(b"null")
"""In a record's `config` once it is written: a request may have megabytes, and an object may live for months."""


class ContainerState(StrEnum):
    """Where a container stands; `CREATING` is never shown to clients."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class SandboxState(StrEnum):
    """Where a sandbox stands; `CREATING` is never shown to clients."""

    CREATING = "creating"
    READY = "ready"
    NOT_READY = "notready"


class Step(StrEnum):
    """What moves an object from one state to the next."""

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
    """A process that no other can be mistaken for: its pid and its start, in clock ticks since boot."""

    pid: int
    start_ticks: int


def tenant_of(namespace: str) -> str:
    """A Kubernetes namespace's pods are one tenant; "" for a pod without one, which is a tenant of its own."""
    return f"namespace {namespace}" if namespace else ""


class PodMetadata(msgspec.Struct, frozen=True):
    """CRI's PodSandboxMetadata."""

    name: str
    namespace: str
    uid: str
    attempt: int

    @property
    def reserved_name(self) -> str:
        """The name only one sandbox may hold; JSON, since no separator is forbidden in the parts."""
        return msgspec.json.encode([self.name, self.namespace, self.uid, self.attempt]).decode()


class ContainerMetadata(msgspec.Struct, frozen=True):
    """CRI's ContainerMetadata."""

    name: str
    attempt: int

    def reserved_name(self, sandbox_id: str) -> str:
        """The name only one container may hold."""
        return msgspec.json.encode([sandbox_id, self.name, self.attempt]).decode()


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox is: written before the first effect, never changed."""

    format: int = RECORD_FORMAT
    id: str
    metadata: PodMetadata
    handler: str
    digest: str
    """Of the request, so that a retry can be told from a different one."""
    created_at_ns: int
    boot_id: str
    cgroup_parent: str
    netns: str
    """The pinned namespace's file; empty for host network."""
    hostname: str
    image_id: str
    layers: tuple[str, ...]
    """Short names of the pause image's layers, topmost first: they stay on disk while this sandbox is."""
    labels: Labels = Labels()
    """SELinux: of its processes and files. The level is taken while this record is."""
    config: msgspec.Raw
    """CRI's PodSandboxConfig as protobuf's JSON; in memory `ON_DISK` once it is written."""

    @property
    def name(self) -> str:
        """The reserved name."""
        return self.metadata.reserved_name

    @property
    def tenant(self) -> str:
        """With whom it shares what tenants have of a node, as `slots` names it."""
        return tenant_of(self.metadata.namespace)

    @property
    def layers_in_use(self) -> tuple[str, ...]:
        """Those that must stay on disk."""
        return self.layers


class ImageVolumeRecord(msgspec.Struct, frozen=True):
    """An image that a container mounts as a volume."""

    index: int
    """The mount's place in the request."""
    image_id: str
    layers: tuple[str, ...]


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a container is: written before the first effect, never changed."""

    format: int = RECORD_FORMAT
    id: str
    sandbox_id: str
    pod_namespace: str = ""
    """The sandbox's Kubernetes namespace. Empty in records of before."""
    metadata: ContainerMetadata
    handler: str
    digest: str
    created_at_ns: int
    boot_id: str
    cgroup_parent: str
    image_id: str
    image_ref: str
    """A name of the image that clients may show: `repo@sha256:…`, else the image's ID."""
    image_name: str = ""
    """What users call the image: its tag, else its digest, else its ID. Empty in records of before."""
    layers: tuple[str, ...]
    """Short names of the image's layers, topmost first: they stay on disk while this container is."""
    image_volumes: tuple[ImageVolumeRecord, ...] = ()
    """Their layers stay as well."""
    log_path: str
    """Absolute; empty where the pod keeps no logs."""
    stop_signal: int
    labels: Labels = Labels()
    """SELinux: of its processes and files."""
    config: msgspec.Raw
    """CRI's ContainerConfig as protobuf's JSON; in memory `ON_DISK` once it is written."""

    @property
    def name(self) -> str:
        """The reserved name."""
        return self.metadata.reserved_name(self.sandbox_id)

    @property
    def tenant(self) -> str:
        """With whom its pod shares what tenants have of a node, as `slots` names it."""
        return tenant_of(self.pod_namespace)

    @property
    def layers_in_use(self) -> tuple[str, ...]:
        """Those that must stay on disk."""
        return (*self.layers, *(layer for each in self.image_volumes for layer in each.layers))


class User(msgspec.Struct, frozen=True):
    """Whom a container's first process runs as: what was asked for, settled to numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """The supplementary groups, the primary one among them."""


class NetworkAttachment(msgspec.Struct, frozen=True):
    """A network that a sandbox's namespace was, or may have been, attached to."""

    network: str
    ifname: str


class SandboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What changes about a sandbox."""

    format: int = RECORD_FORMAT
    ready_at_ns: int = 0
    stopped_at_ns: int = 0
    """Since when it is not ready: stopped, or its pause process ended."""
    process: Process | None = None
    monitor: Process | None = None
    """Of a pause container with a kernel of its own, and of those that former versions made. Others have none."""
    attachments: tuple[NetworkAttachment, ...] = ()
    """Noted before CNI ADD, gone after CNI DEL: what is here is still to be undone."""
    ips: tuple[str, ...] = ()
    torn_down: bool = False
    """Whether StopPodSandbox has torn down everything but files."""
    reason: str = ""
    """Why it is not ready, for a person."""
    sizing: msgspec.Raw = msgspec.Raw(b"{}")
    """CRI's LinuxPodSandboxConfig with the last overhead and resources it was told, as protobuf's JSON."""

    @property
    def is_complete(self) -> bool:
        """Whether it has been ready once, or given up."""
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
        """The sandbox is complete."""
        _require_sandbox(self.state, Step.COMMIT)
        return msgspec.structs.replace(self, ready_at_ns=at_ns, process=process, monitor=monitor)

    def stopped(self, at_ns: int, reason: str) -> SandboxStatus:
        """The sandbox is no longer ready; the first reason stays."""
        if self.state is SandboxState.NOT_READY:
            return self
        if self.state is SandboxState.READY:
            _require_sandbox(self.state, Step.STOP)
        return msgspec.structs.replace(self, stopped_at_ns=at_ns, reason=reason)


class ContainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What changes about a container."""

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
    """CRI's LinuxContainerResources in force, as protobuf's JSON, once an update changed the request's; else {}."""
    pids_limit: int = 0
    """What the last update made of it; 0 if none did."""
    start_fault: str = ""
    """Why its program can't be run, in the runtime's words: then it has no process, and its start will fail."""
    torn_down: bool = False
    """Whether the runtime's own state and the cgroup are gone, after the exit."""

    @property
    def is_complete(self) -> bool:
        """Whether its creation came to an end."""
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
        """The container is complete and waits for its start."""
        _require_container(self.state, Step.COMMIT)
        return msgspec.structs.replace(
            self, committed_at_ns=at_ns, process=process, monitor=monitor, user=user
        )

    def unstartable(self, at_ns: int, fault: str, user: User | None) -> ContainerStatus:
        """The container is complete but for its process: `fault` says why there can be none."""
        _require_container(self.state, Step.COMMIT)
        return msgspec.structs.replace(
            self, committed_at_ns=at_ns, start_fault=fault, user=user, torn_down=True
        )

    def started(self, at_ns: int) -> ContainerStatus:
        """Its process runs."""
        _require_container(self.state, Step.START)
        # A clock set back must not show a start before the creation.
        return msgspec.structs.replace(self, started_at_ns=max(at_ns, self.committed_at_ns))

    def exited(
        self, at_ns: int, exit_code: int, *, reason: str, message: str = ""
    ) -> ContainerStatus:
        """Its process ended. `exit_code` is 128+n for signal n. The first exit stays."""
        if self.state is ContainerState.EXITED:
            return self
        _require_container(self.state, Step.EXIT)
        return msgspec.structs.replace(
            self,
            # A clock set back must not show an end before the start.
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
