"""Runtimes whose pods have kernels of their own: kata-runtime 1.x and gVisor's runsc, by the same command line.

A pod's pause container makes the sandbox, its other containers join it; annotations say which is which. What the node
sees of a container is a process that stands for it: it has the container's streams, passes signals on and ends with
its exit code. kata-runtime brings one (kata-shim); for runsc it is `runsc_proxy`. Rules:
- What the two have in common is here; what only one of them does is in its `Dialect`.
- Which of them it is, the runtime says itself, once: its file may have any name.
- A runtime may keep more under an object's ID than its `delete` removes, when it was killed on its way. `clear` takes
  that away by the ID alone, and trusts no answer.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from cri_shim import metrics
from cri_shim.errors import (
    UNREADABLE_DOCUMENT,
    CriShimError,
    RuntimeCommandError,
    UnsupportedError,
)
from cri_shim.host.cgroups.placement import SCOPE_PREFIX
from cri_shim.host.files import remove_tree, write_new
from cri_shim.host.mounts import unmount_below
from cri_shim.kernel_call import in_time
from cri_shim.oci import guest_exec
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.proxy_start import START_FIFO, start_proxied
from cri_shim.oci.runtime import ExecCommand
from cri_shim.oci.runtime_errors import runtime_message
from cri_shim.operations import step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.oci.runtime import ExecFiles
    from cri_shim.oci.spec.inputs import Spec

log = structlog.get_logger()
PROXY: Final = Path(__file__).with_name("runsc_proxy.py")
KATA_DIRS: Final = (
    Path("/run/vc/sbs"),
    Path("/run/vc/vm"),
    Path("/run/kata-containers/shared/sandboxes"),
    Path("/run/kata-containers/containers-mapping"),
)
"""Where kata-runtime 1.x keeps a directory for each sandbox, the last one for each container."""
MAX_KILLED_INSIDE = 32
"""Processes of one exec, each a command: what else it has started ends with its container."""
_NO_COMMAND = re.compile(r"subcommand \S+ not understood|all known top-level flags", re.IGNORECASE)
"""Instead of a command that it doesn't have runsc explains those that it has, at such length that the end is seen."""
_PROCESS_LINE = re.compile(r"^\s*\S+\s+(\d+)\s+(\d+)\s")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one of these runtimes does in its own way."""

    proxied: bool = False
    """Whether nothing on the node stands for a container that has joined a sandbox, unless we see to it."""
    detached_exec_has_streams: bool = True
    """Whether an exec that is left behind has the command's streams; else only one with a terminal has any."""
    counts_from_inside: bool = False
    """Whether it leaves, and takes, the pids that processes have in the sandbox."""
    cgroup_prefix: str = ""
    """How it begins the name of a cgroup, beside those that are named as it was told."""
    dirs: tuple[Path, ...] = ()
    """Where it keeps more than below its root."""


KATA: Final = Dialect(detached_exec_has_streams=False, cgroup_prefix="kata_", dirs=KATA_DIRS)
RUNSC: Final = Dialect(proxied=True, counts_from_inside=True)


class VmRuntime(CliRuntime):
    """One handler's runtime of kind `vm`."""

    _dialect: Dialect | None = None

    async def dialect(self) -> Dialect:
        """Which one it is. Raises as `version`, until that has succeeded once."""
        if self._dialect is None:
            self._dialect = RUNSC if (await self.version()).name == "runsc" else KATA
        return self._dialect

    async def create_prefix(self, *, joins_sandbox: bool) -> list[str]:
        """What `create` is appended to, for the monitor. Raises as `version`."""
        prefix = self.command_prefix()
        if joins_sandbox and (await self.dialect()).proxied:
            # -I -S: it needs nothing but the interpreter, and takes nothing from its environment.
            return [sys.executable, "-I", "-S", str(PROXY), *prefix]
        return prefix

    async def adapted(self, spec: Spec, *, joins_sandbox: bool) -> Spec:
        """The spec, in which runsc is told of a pod's own PID namespace by no word about it.

        It takes one that is joined for a new one, which all that join it share, and which ends with the first of them.
        Without it a container is among the sandbox's own processes, whose first one is the pause container's.
        """
        if not joins_sandbox or not (await self.dialect()).proxied:
            return spec
        namespaces = [
            each
            for each in spec["linux"]["namespaces"]
            if not (each["type"] == "pid" and each.get("path"))
        ]
        return {**spec, "linux": {**spec["linux"], "namespaces": namespaces}}

    async def start(self, container_id: str, bundle_dir: Path) -> None:
        """Let a created container's process run; one that ended immediately was started.

        Raises NotFoundError, RuntimeCommandError, DeadlineError.
        """
        if not (bundle_dir / START_FIFO).exists():
            await super().start(container_id, bundle_dir)
            return
        doing, name = self._doing("starting", container_id), self.settings.name
        try:
            with step(f"{name} start"), metrics.OCI_COMMAND_SECONDS.labels(name, "start").time():
                code, words = await start_proxied(bundle_dir, doing, self._timeout_s)
        except CriShimError:
            metrics.OCI_COMMAND_FAILURES.labels(name, "start").inc()
            raise
        if code:
            metrics.OCI_COMMAND_FAILURES.labels(name, "start").inc()
            raise RuntimeCommandError(
                doing,
                [*self.command_prefix(), "start", container_id],
                f"exited with status {code}",
                runtime_message(words),
            )

    async def update(self, container_id: str, resources_file: Path) -> None:
        """Set a container's limits. Raises UnsupportedError for a runtime without that, and as `CliRuntime.update`."""
        try:
            await super().update(container_id, resources_file)
        except RuntimeCommandError as error:
            if _NO_COMMAND.search(error.stderr_tail):
                raise UnsupportedError(
                    f"container {container_id}: runtime handler {self.settings.name!r} can't change the limits of "
                    "what runs: its pod's cgroup limits it"
                ) from error
            raise

    async def exec_command(
        self, container_id: str, files: ExecFiles, console_socket: Path | None = None
    ) -> ExecCommand:
        """The command that runs one more process. Raises as `version`."""
        dialect = await self.dialect()
        attached = console_socket is None and not dialect.detached_exec_has_streams
        argv = [*self.command_prefix(), "exec", *(() if attached else ("--detach",))]
        argv += ["--process", str(files.process), "--pid-file", str(files.pid)]
        if dialect.counts_from_inside:
            argv += ["--internal-pid-file", str(files.inner_pid)]
        if console_socket is not None:
            argv += ["--console-socket", str(console_socket)]
        marks = () if dialect.counts_from_inside else (guest_exec.mark(files.process),)
        return ExecCommand([*argv, container_id], attached, marks)

    async def end_exec(self, container_id: str, files: ExecFiles, host_pid: int) -> None:
        """Have the process in the sandbox end, for which `host_pid` stands; raises nothing.

        It is killed with what it has started: by the sandbox's own pids where the runtime tells them, else by an exec
        that looks for them (`guest_exec`).
        """
        try:
            if (await self.dialect()).counts_from_inside:
                await self._kill_inside(container_id, _read_number(files.inner_pid))
            else:
                await self._kill_in_guest(container_id, files, host_pid)
        except (CriShimError, OSError, *UNREADABLE_DOCUMENT) as error:
            log.warning(
                "exec not ended in its sandbox", container_id=container_id, error=str(error)
            )

    async def _kill_inside(self, container_id: str, pid: int | None) -> None:
        if pid is None:
            return
        doing = self._doing(f"killing process {pid} in", container_id)
        listed = await self._run("ps", [container_id], doing, max_stdout_bytes=1 << 20)
        family = [pid, *_descendants(listed.stdout.decode("utf-8", "replace"), pid)]
        for member in family[:MAX_KILLED_INSIDE]:
            await self._run("kill", ["--pid", str(member), container_id, "KILL"], doing)

    async def _kill_in_guest(self, container_id: str, files: ExecFiles, host_pid: int) -> None:
        standing = await guest_exec.standing_for(host_pid)
        try:
            await self._run_killer(container_id, files)
            if await guest_exec.have_ended(standing, guest_exec.KILLED_S):
                return
        except CriShimError as error:
            log.debug("no exec kills another", container_id=container_id, error=str(error))
        if not await guest_exec.end_by_signals(standing):
            log.warning("exec may go on in its guest", container_id=container_id)

    async def _run_killer(self, container_id: str, files: ExecFiles) -> None:
        process = msgspec.json.decode(files.process.read_bytes())
        killer = guest_exec.killer_of(process, guest_exec.mark(files.process))
        file = files.process.with_suffix(".killer")
        doing = self._doing("killing an exec in", container_id)
        write_new(file, msgspec.json.encode(killer))
        try:
            done = await self._run(
                "exec",
                ["--process", str(file), container_id],
                doing,
                timeout_s=guest_exec.KILLER_TIMEOUT_S,
            )
        finally:
            file.unlink(missing_ok=True)
        if not done.ok:
            raise self._failure("exec", doing, done)

    async def clear(self, object_id: str, pod_id: str) -> None:
        """Take away what the runtime keeps of an object whose processes are gone: files, and mounts below them.

        Of a sandbox (`object_id` is `pod_id`) that is all of its containers' as well. Raises OSError, DeadlineError.
        """
        places = (self.settings.root_dir, *KATA_DIRS)
        await in_time("clearing what the runtime left", clear_kept, object_id, pod_id, places)

    def cgroup_dirs(self, object_id: str, cgroup_dir: str) -> tuple[str, ...]:
        """The requested cgroup, and those of kata-runtime (`kept_cgroups`)."""
        return kept_cgroups(object_id, cgroup_dir, systemd=self._systemd_cgroup)


def kept_cgroups(object_id: str, cgroup_dir: str, *, systemd: bool) -> tuple[str, ...]:
    """The requested cgroup, and those that kata-runtime may create and name after the object. Pure.

    They are in the same parent. If kata-runtime mistakes systemd's form of a path, `SLICE:PREFIX:ID`, for a relative
    path, they are at the root.
    """
    parent, _, name = cgroup_dir.rpartition("/")
    prefix = KATA.cgroup_prefix
    found = [cgroup_dir, f"{parent}/{prefix}{object_id}"]
    if systemd:
        path = f"{parent.rpartition('/')[2] or '-.slice'}:{SCOPE_PREFIX}:{object_id}"
        found += [f"{parent}/{prefix}{name}", f"{prefix}{object_id}", path, f"{prefix}{path}"]
    return tuple(dict.fromkeys(each.lstrip("/") for each in found))


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _descendants(table: str, pid: int) -> list[int]:
    """Those of `pid` in what `runsc ps` writes: a line each, UID, PID and PPID first. Pure."""
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        if (found := _PROCESS_LINE.match(line)) is not None:
            children.setdefault(int(found[2]), []).append(int(found[1]))
    below: list[int] = []
    waiting = [pid]
    while waiting:
        for child in children.pop(waiting.pop(), ()):
            below.append(child)
            waiting.append(child)
    return below


def clear_kept(object_id: str, pod_id: str, places: tuple[Path, ...]) -> None:
    """As `VmRuntime.clear`, in these places. Blocking. Raises OSError."""
    for place in places:
        for found in _kept(place, object_id, pod_id):
            unmount_below(found)
            if found.is_dir() and not found.is_symlink():
                remove_tree(found)
            else:
                found.unlink(missing_ok=True)


def _kept(place: Path, object_id: str, pod_id: str) -> Iterator[Path]:
    """What lies there under an object's ID, and of a container below its sandbox's. Blocking."""
    for directory in (place, place / pod_id):
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        # `ID`, `ID_sandbox:POD.state`, `runsc-ID.sock`, `ID-1234-resolv.conf`
        yield from [directory / name for name in names if object_id in name]
