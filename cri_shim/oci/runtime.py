"""What the daemon asks of an OCI runtime, and which runtime a RuntimeClass handler means.

Rules:
- One `Runtime` per configured handler. It carries out the runtime-spec's operations (runtime.md, "Operations") on
  containers by their ID; `create` is the monitor's part, which runs the command that `command_prefix` begins.
- Stopping and deleting what is gone already is success here; every other policy is the caller's.
- The answers of a runtime's commands are decoded here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from cri_shim.errors import UnknownRuntimeHandlerError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path


class RuntimeKind(StrEnum):
    """How a handler isolates."""

    OCI = "oci"
    """On the host's kernel."""
    VM = "vm"
    """Each pod in a sandbox with a kernel of its own."""
    SHIM = "shim"
    """Behind a shim that speaks containerd's task protocol."""


@dataclass(frozen=True, slots=True)
class HandlerSettings:
    """One configured runtime handler."""

    name: str
    """As RuntimeClass says it."""
    path: str
    """The runtime's executable: a path, or a name to look up in PATH."""
    root_dir: Path
    """The runtime's own state (`--root`)."""
    kind: RuntimeKind = RuntimeKind.OCI
    args: tuple[str, ...] = ()
    """Global options before the command."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the minimal environment of each call."""


class RuntimeState(msgspec.Struct, frozen=True):
    """The answer of `state` (runtime.md, "State")."""

    id: str
    status: str
    """creating, created, running, stopped, or a runtime's own word such as paused."""
    pid: int = 0
    bundle: str = ""
    annotations: dict[str, str] | None = None


class _Switch(msgspec.Struct, frozen=True):
    enabled: bool | None = None


class _MountExtensions(msgspec.Struct, frozen=True):
    idmap: _Switch | None = None


class LinuxFeatures(msgspec.Struct, frozen=True, rename="camel"):
    """The part of `features` about Linux; None is "it doesn't say"."""

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
    """A runtime's own facts under its own keys."""
    potentially_unsafe_config_annotations: list[str] | None = None
    """Annotations that it takes as orders: a key, or with a dot at its end all that begin so."""

    @property
    def recursive_read_only_mounts(self) -> bool:
        """Whether the mount option `rro` is known."""
        return "rro" in (self.mount_options or ())

    @property
    def reads_user_mappings(self) -> bool:
        """Whether the mappings of a user namespace that is joined are read there: runc's 1.2 and newer, the first
        with ID-mapped mounts, warn of those in the spec; others need them."""
        return self._is_runc

    @property
    def max_user_id(self) -> int:
        """The highest user or group of a process: runc has a bound of its own below the kernel's."""
        return 2**31 - 1 if self._is_runc else 2**32 - 2

    @property
    def _is_runc(self) -> bool:
        return "org.opencontainers.runc.version" in (self.annotations or {})

    @property
    def user_namespaces(self) -> bool:
        """Whether containers may have user namespaces and their mounts be ID-mapped."""
        if self.linux is None or "user" not in (self.linux.namespaces or ()):
            return False
        extensions = self.linux.mount_extensions
        return (
            extensions is not None
            and extensions.idmap is not None
            and bool(extensions.idmap.enabled)
        )


@dataclass(frozen=True, slots=True)
class RuntimeVersion:
    """What `--version` says."""

    name: str
    version: str
    spec_version: str
    """The version of the runtime-spec; empty when it doesn't say."""


class Runtime(Protocol):
    """An OCI runtime. All calls may raise RuntimeCommandError and DeadlineError, and name the container."""

    @property
    def settings(self) -> HandlerSettings:
        """What it was configured with."""
        ...

    def command_prefix(self) -> list[str]:
        """Executable (absolute) and global options: what each command line begins with."""
        ...

    def environment(self) -> dict[str, str]:
        """The whole environment of each call."""
        ...

    async def start(self, container_id: str) -> None:
        """Let a created container's process run; one that ended immediately was started."""
        ...

    async def kill(
        self, container_id: str, signal_number: int, *, all_processes: bool = False
    ) -> bool:
        """Signal the container's first process, or all; False when it isn't running or not there.

        With `all_processes` runtimes call it a success, too, when there was nobody left.
        """
        ...

    async def update(self, container_id: str, resources_file: Path) -> None:
        """Set a container's limits: the file has the spec's `linux.resources`."""
        ...

    async def delete(self, container_id: str, *, force: bool = False) -> None:
        """Forget a stopped container, with `force` any; success when it is not there."""
        ...

    async def state(self, container_id: str) -> RuntimeState | None:
        """What the runtime thinks of it; None when it is not there."""
        ...

    def exec_detached_argv(
        self,
        container_id: str,
        *,
        process_file: Path,
        pid_file: Path,
        console_socket: Path | None = None,
    ) -> list[str]:
        """The command that runs one more process, leaves it behind and writes its pid."""
        ...

    async def features(self) -> RuntimeFeatures | None:
        """What it supports; None when it can't say."""
        ...

    async def version(self) -> RuntimeVersion:
        """What it calls itself."""
        ...


class Runtimes:
    """The configured runtimes by handler name. Replaced as a whole on reload."""

    def __init__(self, runtimes: Iterable[Runtime], *, default_handler: str) -> None:
        self._runtimes = {runtime.settings.name: runtime for runtime in runtimes}
        self.default_handler = default_handler
        self.get("")

    def __iter__(self) -> Iterator[Runtime]:
        return iter(self._runtimes.values())

    def get(self, handler: str) -> Runtime:
        """The runtime of a RuntimeClass handler; the default one for an empty name.

        Raises UnknownRuntimeHandlerError, naming those there are.
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
