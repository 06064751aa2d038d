"""Drive an OCI runtime through its command line: runc, crun, kata-runtime 1.x, runsc.

Rules:
- The commands are those of the "OCI Command Line Interface", which all of these share. Where they differ, runc's form
  counts.
- Each call has a deadline and is timed per handler and command. An error carries the runtime's own message.
- No call stands on a hot path unless the operation is the runtime's: state comes from the kernel and from exit files.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import msgspec

from cri_shim import metrics
from cri_shim.errors import UNREADABLE_DOCUMENT, DeadlineError, NotFoundError, RuntimeCommandError
from cri_shim.host.files import read_bounded, remove_tree
from cri_shim.host.mounts import unmount_below
from cri_shim.host.programs import find_program
from cri_shim.kernel_call import in_time
from cri_shim.oci.command_lines import run_arguments
from cri_shim.oci.runtime import (
    ExecCommand,
    ExecFiles,
    HandlerSettings,
    RuntimeFeatures,
    RuntimeState,
    RuntimeStats,
    RuntimeVersion,
)
from cri_shim.oci.runtime_errors import runtime_message, says_not_found, says_not_running
from cri_shim.operations import step
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cri_shim.host.process import Completed, Reaper
    from cri_shim.oci.spec.inputs import Spec

MAX_ANSWER_BYTES = 1 << 20
_MAX_PID_FILE_BYTES = 64
_UMASK = 0o022
"""Of a runtime that starts a container, as conmon gives it: it makes mount points, and ours may be stricter."""
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _StatsEvent(msgspec.Struct, frozen=True):
    data: RuntimeStats


class CliRuntime:
    """The runtime of one handler. Each call is a child process."""

    def __init__(
        self,
        settings: HandlerSettings,
        reaper: Reaper,
        *,
        timeout_s: float,
        systemd_cgroup: bool = False,
    ) -> None:
        self._settings = settings
        self._reaper = reaper
        self._timeout_s = timeout_s
        self._systemd_cgroup = systemd_cgroup

    @property
    def settings(self) -> HandlerSettings:
        """The handler's configuration."""
        return self._settings

    def environment(self) -> dict[str, str]:
        """The complete environment of each call: PATH and the handler's configured variables."""
        return {"PATH": os.environ.get("PATH", _DEFAULT_PATH), **self._settings.env}

    def command_prefix(self) -> list[str]:
        """The absolute path of the executable and the global options, with which each command line begins.

        Looks the executable up each time, so that a runtime that was installed or replaced meanwhile is found.
        Raises RuntimeCommandError when there is none.
        """
        prefix = [self._executable(), "--root", str(self._settings.root_dir), *self._settings.args]
        if self._systemd_cgroup:
            prefix.append("--systemd-cgroup")
        return prefix

    async def create_prefix(self, *, joins_sandbox: bool) -> list[str]:
        """What `create` is appended to, for the monitor. Raises RuntimeCommandError when there is no executable."""
        return self.command_prefix()

    async def adapted(self, spec: Spec, *, joins_sandbox: bool) -> Spec:
        """The spec as it is: it is runc's own."""
        return spec

    async def start(self, container_id: str, bundle_dir: Path) -> None:
        """Start the process of a created container. A process that exits at once counts as started.

        Raises NotFoundError, RuntimeCommandError, DeadlineError.
        """
        doing = self._doing("starting", container_id)
        done = await self._run("start", [container_id], doing)
        if done.ok:
            return
        if says_not_found(runtime_message(done.stderr_tail), container_id):
            raise NotFoundError(
                "container", container_id, f"runtime {self._settings.name} does not know it"
            )
        raise self._failure("start", doing, done)

    async def run(
        self, container_id: str, *, bundle_dir: Path, pid_file: Path, timeout_s: float
    ) -> int:
        """Create and start a container without a monitor, and return the pid of its process.

        The process has /dev/null as stdin and stdout, and becomes our child. A call that fails may leave a process in
        the container's cgroup; if the runtime forked first, it may also be among our orphans.

        Raises RuntimeCommandError, also for a process that ended at once, DeadlineError after `timeout_s` seconds.
        """
        doing = self._doing("creating", container_id)
        arguments = run_arguments(container_id, bundle_dir=bundle_dir, pid_file=pid_file)
        argv = [*self.command_prefix(), *arguments]
        with self._reaper.awaiting_orphans():
            with self._command("run", argv, doing):
                done = await self._reaper.run_detaching(
                    argv, timeout_s=timeout_s, env=self.environment(), umask=_UMASK
                )
            if not done.ok:
                raise self._failure("run", doing, done)
            try:
                pid = int(read_bounded(pid_file, _MAX_PID_FILE_BYTES))
            except (OSError, ValueError) as error:
                metrics.OCI_COMMAND_FAILURES.labels(self._settings.name, "run").inc()
                raise RuntimeCommandError(doing, argv, "left no pid", str(error)) from error
            child = self._reaper.claim(pid)
            if child is not None and child.ending is None:
                self._reaper.let_go(child)
        if child is not None and child.ending is not None:
            metrics.OCI_COMMAND_FAILURES.labels(self._settings.name, "run").inc()
            raise RuntimeCommandError(
                doing, argv, "started a process that ended at once", child.ending.describe()
            )
        return pid

    async def kill(
        self, container_id: str, signal_number: int, *, all_processes: bool = False
    ) -> bool:
        """Send a signal to the container's first process, or to all; False when the container is not running or gone.

        With `all_processes` a runtime reports success even if no process was left.

        Raises RuntimeCommandError, DeadlineError.
        """
        doing = self._doing(f"sending signal {signal_number} to", container_id)
        options = ["--all"] if all_processes else []
        done = await self._run("kill", [*options, container_id, str(signal_number)], doing)
        if done.ok:
            return True
        message = runtime_message(done.stderr_tail)
        if says_not_running(message, container_id) or says_not_found(message, container_id):
            return False
        raise self._failure("kill", doing, done)

    async def update(self, container_id: str, resources_file: Path) -> None:
        """Change a container's limits to those of the file, an OCI `linux.resources` object. Absent fields stay.

        Raises RuntimeCommandError, DeadlineError.
        """
        doing = self._doing("changing the resources of", container_id)
        done = await self._run("update", ["--resources", str(resources_file), container_id], doing)
        if not done.ok:
            raise self._failure("update", doing, done)

    async def delete(self, container_id: str, *, force: bool = False) -> None:
        """Delete a stopped container, with `force` kill and delete it in any state. Succeeds when it is gone already.

        `force` also clears the container's directory below the runtime's root. runc bind-mounts its own executable
        there for a moment; a runc that is killed in that moment leaves the mount, and `runc delete --force` then
        reports success without removing it.
        The caller removes cgroups that a killed runtime left.
        Raises RuntimeCommandError, DeadlineError, OSError when that directory can't be cleared.
        """
        doing = self._doing("deleting", container_id)
        done = await self._run("delete", ["--force"] * force + [container_id], doing)
        if not done.ok and not says_not_found(runtime_message(done.stderr_tail), container_id):
            raise self._failure("delete", doing, done)
        leftover = self._settings.root_dir / container_id
        # An empty ID would name the runtime's whole root.
        if force and container_id and leftover.is_dir():
            await in_time("clearing what the runtime left", _clear, leftover)

    async def state(self, container_id: str) -> RuntimeState | None:
        """The runtime's view of the container; None when there is no such container.

        Raises RuntimeCommandError, DeadlineError.
        """
        doing = self._doing("asking for the state of", container_id)
        done = await self._run("state", [container_id], doing, max_stdout_bytes=MAX_ANSWER_BYTES)
        if done.ok:
            try:
                return msgspec.json.decode(done.stdout, type=RuntimeState)
            except UNREADABLE_DOCUMENT as error:
                metrics.OCI_COMMAND_FAILURES.labels(self._settings.name, "state").inc()
                raise RuntimeCommandError(
                    doing, done.argv, "printed a state that can't be parsed", str(error)
                ) from error
        if says_not_found(runtime_message(done.stderr_tail), container_id):
            return None
        raise self._failure("state", doing, done)

    async def exec_command(
        self, container_id: str, files: ExecFiles, console_socket: Path | None = None
    ) -> ExecCommand:
        """The command that starts a process in the container, writes its pid and exits while it runs.

        The process inherits the command's standard streams. If `terminal` is set in its file, it gets a terminal
        instead, whose descriptor the runtime sends to `console_socket`.
        """
        argv = [*self.command_prefix(), "exec", "--detach"]
        argv += ["--process", str(files.process), "--pid-file", str(files.pid)]
        if console_socket is not None:
            argv += ["--console-socket", str(console_socket)]
        return ExecCommand([*argv, container_id])

    async def end_exec(self, container_id: str, files: ExecFiles, host_pid: int) -> None:
        """Nothing: on the host's kernel the process stands for itself."""

    async def stats(self, container_id: str) -> RuntimeStats:
        """What a running container uses, as the runtime says.

        Raises RuntimeCommandError, also for one that doesn't run, DeadlineError.
        """
        doing = self._doing("asking for the statistics of", container_id)
        done = await self._run(
            "events", ["--stats", container_id], doing, max_stdout_bytes=MAX_ANSWER_BYTES
        )
        if not done.ok:
            raise self._failure("events", doing, done)
        try:
            return msgspec.json.decode(done.stdout, type=_StatsEvent).data
        except UNREADABLE_DOCUMENT as error:
            raise RuntimeCommandError(
                doing, done.argv, "gave an answer that can't be read", str(error)
            ) from error

    async def clear(self, object_id: str, pod_id: str) -> None:
        """Nothing: `delete` with force has cleared it."""

    def cgroup_dirs(self, object_id: str, cgroup_dir: str) -> tuple[str, ...]:
        """The one that it is told."""
        return (cgroup_dir,)

    async def features(self) -> RuntimeFeatures | None:
        """The features that the runtime supports; None when it lacks the command (crun before 1.8.6, kata-runtime,
        runsc) or prints something else. Raises RuntimeCommandError when it can't be run, DeadlineError."""
        doing = f"asking {self._settings.name} for its features"
        done = await self._run("features", [], doing, max_stdout_bytes=MAX_ANSWER_BYTES)
        if not done.ok:
            return None
        try:
            return msgspec.json.decode(done.stdout, type=RuntimeFeatures)
        except UNREADABLE_DOCUMENT:
            return None

    async def version(self) -> RuntimeVersion:
        """The runtime's name and version.

        Raises RuntimeCommandError, DeadlineError.
        """
        doing = f"asking runtime handler {quoted(self._settings.name)} for its version"
        done = await self._run("--version", [], doing, max_stdout_bytes=MAX_ANSWER_BYTES)
        text = done.stdout.decode("utf-8", "replace").strip()
        if not done.ok or not text:
            raise self._failure("--version", doing, done)
        return _parse_version(text)

    def _doing(self, verb: str, container_id: str) -> str:
        return f"{verb} container {container_id} (runtime handler {quoted(self._settings.name)})"

    def _executable(self) -> str:
        path = self._settings.path
        found = find_program(path, self.environment()["PATH"])
        if found is None:
            raise RuntimeCommandError(
                f"runtime handler {quoted(self._settings.name)}",
                [path],
                "was not found",
                f"install it, or set runtime.handlers.{self._settings.name}.path",
            )
        return found

    async def _run(
        self,
        command: str,
        args: list[str],
        doing: str,
        *,
        max_stdout_bytes: int = 0,
        timeout_s: float | None = None,
    ) -> Completed:
        argv = [*self.command_prefix(), command, *args]
        with self._command(command, argv, doing):
            return await self._reaper.run(
                argv,
                timeout_s=self._timeout_s if timeout_s is None else timeout_s,
                env=self.environment(),
                max_stdout_bytes=max_stdout_bytes,
            )

    @contextlib.contextmanager
    def _command(self, command: str, argv: list[str], doing: str) -> Iterator[None]:
        """A command as a step, timed and counted; its failures in terms of what it was to do."""
        handler = self._settings.name
        try:
            with (
                step(f"{handler} {command}"),
                metrics.OCI_COMMAND_SECONDS.labels(handler, command).time(),
            ):
                yield
        except DeadlineError as error:
            metrics.OCI_COMMAND_FAILURES.labels(handler, command).inc()
            raise DeadlineError(f"{doing}: {error}") from error
        except OSError as error:
            metrics.OCI_COMMAND_FAILURES.labels(handler, command).inc()
            raise RuntimeCommandError(
                doing, argv, "could not be run", error.strerror or str(error)
            ) from error

    def _failure(self, command: str, doing: str, done: Completed) -> RuntimeCommandError:
        metrics.OCI_COMMAND_FAILURES.labels(self._settings.name, command).inc()
        return RuntimeCommandError(
            doing, done.argv, done.ending.describe(), runtime_message(done.stderr_tail)
        )


def _clear(directory: Path) -> None:
    unmount_below(directory)
    remove_tree(directory)


def _parse_version(text: str) -> RuntimeVersion:
    """Parse `NAME version X` and, on a later line, `spec: Y`. kata-runtime writes `NAME  : X`."""
    lines = text.splitlines()
    name, *rest = lines[0].replace(" : ", " ").split() or [""]
    number = rest[-1] if rest else ""
    spec_version = ""
    for line in lines[1:]:
        key, separator, value = line.partition(":")
        if separator and key.strip() in ("spec", "OCI specs"):
            spec_version = value.strip()
    return RuntimeVersion(name, number, spec_version)
