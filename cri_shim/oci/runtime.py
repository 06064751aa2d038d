"""The operations that the daemon uses of an OCI runtime, and the choice of a runtime by RuntimeClass handler.

Rules:
- Each configured handler has one `Runtime`. It carries out the runtime-spec's operations (runtime.md, "Operations") on
  containers by ID. `create` is missing: conmon runs it, with the command line that `command_prefix` begins. `run`
  creates and starts a container that has no monitor.
- `kill` and `delete` succeed when the container is gone already. Every other policy is the caller's.
- The types of a runtime's answers stand here; `oci/cli` decodes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from cri_shim.config.model import HandlerKind
from cri_shim.errors import UnknownRuntimeHandlerError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from cri_shim.oci.spec.inputs import Spec


@dataclass(frozen=True, slots=True)
class HandlerSettings:
    """One configured runtime handler."""

    name: str
    """The `handler` of the RuntimeClass."""
    path: str
    """The runtime's executable: a path, or a name to look up in PATH."""
    root_dir: Path
    """The directory of the runtime's own state (`--root`)."""
    kind: HandlerKind = HandlerKind.OCI
    args: tuple[str, ...] = ()
    """Global options before the command."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of each call, which otherwise has only PATH."""
    config_path: str = ""
    """The configuration that a shim is to read; empty for its own default."""
    type_url: str = ""
    """What that configuration is, to a shim that knows several."""

    @property
    def own_kernel(self) -> bool:
        """Whether its pods have, or may have, kernels of their own: then the runtime alone reaches what runs."""
        return self.kind is not HandlerKind.OCI

    @property
    def shares_monitor(self) -> bool:
        """Whether one monitor, the shim, has all containers of a pod, and ends with the pod."""
        return self.kind is HandlerKind.SHIM

    @property
    def has_stand_ins(self) -> bool:
        """Whether a process of the node stands for each container, and takes signals for it."""
        return self.kind is HandlerKind.VM


class RuntimeState(msgspec.Struct, frozen=True):
    """The answer of `state` (runtime.md, "State")."""

    id: str
    status: str
    """creating, created, running, stopped, or a state of the runtime's own, such as paused."""
    pid: int = 0
    bundle: str = ""
    annotations: dict[str, str] | None = None


class _Switch(msgspec.Struct, frozen=True):
    enabled: bool | None = None


class _MountExtensions(msgspec.Struct, frozen=True):
    idmap: _Switch | None = None


class LinuxFeatures(msgspec.Struct, frozen=True, rename="camel"):
    """The `linux` part of `features`. None stands for a field that the runtime left out."""

    namespaces: list[str] | None = None
    capabilities: list[str] | None = None
    seccomp: _Switch | None = None
    apparmor: _Switch | None = None
    selinux: _Switch | None = None
    mount_extensions: _MountExtensions | None = None


class RuntimeFeatures(msgspec.Struct, frozen=True, rename="camel"):
    """The answer of `features` (features.md of the runtime-spec 1.1)."""

    oci_version_min: str = ""
    oci_version_max: str = ""
    mount_options: list[str] | None = None
    linux: LinuxFeatures | None = None
    annotations: dict[str, str] | None = None
    """Facts under the runtime's own keys, such as its version."""
    potentially_unsafe_config_annotations: list[str] | None = None
    """Annotations that change what the runtime does: a key, or a prefix that ends with a dot."""

    @property
    def recursive_read_only_mounts(self) -> bool:
        """Whether the runtime knows the mount option `rro`."""
        return "rro" in (self.mount_options or ())

    @property
    def reads_user_mappings(self) -> bool:
        """Whether the runtime reads the ID mappings from the user namespace that a container joins.

        runc does since 1.2, its first version with ID-mapped mounts, and warns about mappings in the spec. Other
        runtimes need them in the spec.
        """
        return self._is_runc

    @property
    def max_user_id(self) -> int:
        """The highest user or group ID of a process. runc's limit, 2**31 - 1, is lower than the kernel's."""
        return 2**31 - 1 if self._is_runc else 2**32 - 2

    @property
    def _is_runc(self) -> bool:
        return "org.opencontainers.runc.version" in (self.annotations or {})

    @property
    def user_namespaces(self) -> bool:
        """Whether the runtime supports user namespaces with ID-mapped mounts."""
        if self.linux is None or "user" not in (self.linux.namespaces or ()):
            return False
        extensions = self.linux.mount_extensions
        return (
            extensions is not None
            and extensions.idmap is not None
            and bool(extensions.idmap.enabled)
        )


class CpuTime(msgspec.Struct, frozen=True):
    """CPU time in nanoseconds. Zeros may be left out, here and below."""

    total: int = 0


class CpuUsage(msgspec.Struct, frozen=True):
    """CPU time, as `events --stats` has it."""

    usage: CpuTime = CpuTime()


class MemoryAmount(msgspec.Struct, frozen=True):
    """Bytes, of one kind of memory."""

    usage: int = 0
    limit: int = 0


class MemoryUsage(msgspec.Struct, frozen=True):
    """Memory, in bytes."""

    cache: int = 0
    usage: MemoryAmount = MemoryAmount()
    swap: MemoryAmount = MemoryAmount()
    raw: dict[str, int] = msgspec.field(default_factory=dict)
    """The lines of a guest's own memory.stat."""


class PidsUsage(msgspec.Struct, frozen=True):
    """How many processes there are."""

    current: int = 0


class RuntimeStats(msgspec.Struct, frozen=True):
    """What a container uses, as its runtime says."""

    cpu: CpuUsage = CpuUsage()
    memory: MemoryUsage = MemoryUsage()
    pids: PidsUsage = PidsUsage()


@dataclass(frozen=True, slots=True)
class ExecFiles:
    """The files of one exec."""

    process: Path
    """What is to be run: the spec's `process`."""
    pid: Path
    """Where the runtime leaves the pid of what stands for it on the node."""
    inner_pid: Path
    """Where one with a kernel of its own may leave the pid that it has there."""

    def __iter__(self) -> Iterator[Path]:
        return iter((self.process, self.pid, self.inner_pid))


@dataclass(frozen=True, slots=True)
class ExecCommand:
    """How a runtime is told to run one more process in a container. It leaves the pid file once that runs."""

    argv: list[str]
    attached: bool = False
    """Whether the command stays until the process ends, and ends as it does; else the process is left behind."""
    env: tuple[str, ...] = ()
    """To be added to the process's environment: `end_exec` finds it by that."""


@dataclass(frozen=True, slots=True)
class RuntimeVersion:
    """The parsed answer of `--version`."""

    name: str
    version: str
    spec_version: str
    """The version of the runtime-spec; empty when the runtime doesn't print one."""


class Runtime(Protocol):
    """An OCI runtime. Each call may raise RuntimeCommandError or DeadlineError, whose text names the container."""

    @property
    def settings(self) -> HandlerSettings:
        """The handler's configuration."""
        ...

    def command_prefix(self) -> list[str]:
        """The absolute path of the executable and the global options, with which each command line begins."""
        ...

    def environment(self) -> dict[str, str]:
        """The complete environment of each call."""
        ...

    async def create_prefix(self, *, joins_sandbox: bool) -> list[str]:
        """The command that `create` is appended to, for the monitor; `joins_sandbox` for all but pause containers."""
        ...

    async def adapted(self, spec: Spec, *, joins_sandbox: bool) -> Spec:
        """The runtime-spec in the form that this runtime needs."""
        ...

    async def start(self, container_id: str, bundle_dir: Path) -> None:
        """Start the process of a created container. A process that exits at once counts as started."""
        ...

    async def run(
        self, container_id: str, *, bundle_dir: Path, pid_file: Path, timeout_s: float
    ) -> int:
        """Create and start a container that nobody monitors, without streams; the pid of its process."""
        ...

    async def kill(
        self, container_id: str, signal_number: int, *, all_processes: bool = False
    ) -> bool:
        """Send a signal to the container's first process, or to all; False when the container is not running or gone.

        With `all_processes` a runtime reports success even if no process was left.
        """
        ...

    async def update(self, container_id: str, resources_file: Path) -> None:
        """Change a container's limits to those of the file, an OCI `linux.resources` object."""
        ...

    async def delete(self, container_id: str, *, force: bool = False) -> None:
        """Delete a stopped container, with `force` in any state. Succeeds when there is no such container."""
        ...

    async def state(self, container_id: str) -> RuntimeState | None:
        """The runtime's view of the container; None when there is no such container."""
        ...

    async def exec_command(
        self, container_id: str, files: ExecFiles, console_socket: Path | None = None
    ) -> ExecCommand:
        """The command that starts a process in the container, with a terminal if a `console_socket` is given."""
        ...

    async def end_exec(self, container_id: str, files: ExecFiles, host_pid: int) -> None:
        """End the process that `host_pid` represents on the node; call it before `host_pid` is killed."""
        ...

    async def stats(self, container_id: str) -> RuntimeStats:
        """The resource usage of a running container."""
        ...

    async def clear(self, object_id: str, pod_id: str) -> None:
        """Remove what the runtime keeps of a deleted container, or of a whole sandbox if `object_id` is `pod_id`."""
        ...

    def cgroup_dirs(self, object_id: str, cgroup_dir: str) -> tuple[str, ...]:
        """The cgroups that the runtime may have made for an object whose cgroup is to be `cgroup_dir`."""
        ...

    async def features(self) -> RuntimeFeatures | None:
        """The features that the runtime supports; None when it has no readable answer."""
        ...

    async def version(self) -> RuntimeVersion:
        """The runtime's name and version."""
        ...


class Runtimes:
    """The configured runtimes by handler name. A reload replaces the whole object."""

    def __init__(self, runtimes: Iterable[Runtime], *, default_handler: str) -> None:
        self._runtimes = {runtime.settings.name: runtime for runtime in runtimes}
        self.default_handler = default_handler
        # A default handler that is not configured must fail at start, not with the first pod.
        self.get("")

    def __iter__(self) -> Iterator[Runtime]:
        return iter(self._runtimes.values())

    def get(self, handler: str) -> Runtime:
        """The runtime of a RuntimeClass handler; the default one for an empty name.

        Raises UnknownRuntimeHandlerError, whose text lists the configured handlers.
        """
        name = handler or self.default_handler
        try:
            return self._runtimes[name]
        except KeyError:
            known = ", ".join(sorted(self._runtimes)) or "none"
            raise UnknownRuntimeHandlerError(
                f"runtime handler {quoted(name)} is not configured (configured: {known}); "
                "add it under runtime.handlers or correct the RuntimeClass"
            ) from None
