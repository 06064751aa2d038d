"""An OCI runtime through its command line: runc, crun, kata-runtime 1.x, runsc.

Rules:
- The command lines are those of the "OCI Command Line Interface" that all of them share, with runc as the measure.
- Every call has a deadline, ends in the runtime's own words when it fails, and is timed per handler and command.
- No call here stands on a hot path unless an operation needs it: state is read from the kernel and exit files.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from cri_shim import metrics
from cri_shim.errors import UNREADABLE_DOCUMENT, DeadlineError, NotFoundError, RuntimeCommandError
from cri_shim.host.files import remove_tree
from cri_shim.host.mounts import unmount_below
from cri_shim.host.programs import find_program
from cri_shim.kernel_call import in_time
from cri_shim.oci.runtime import HandlerSettings, RuntimeFeatures, RuntimeState, RuntimeVersion
from cri_shim.oci.runtime_errors import runtime_message, says_not_found, says_not_running
from cri_shim.operations import step
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.process import Completed, Reaper

MAX_ANSWER_BYTES = 1 << 20
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CliRuntime:
    """One handler's runtime, a child process per call."""

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
        """What it was configured with."""
        return self._settings

    def environment(self) -> dict[str, str]:
        """The whole environment of each call: PATH and what the handler is configured with."""
        return {"PATH": os.environ.get("PATH", _DEFAULT_PATH), **self._settings.env}

    def command_prefix(self) -> list[str]:
        """Executable and global options: what each command line begins with.

        The executable is looked up each time, so that one installed or replaced meanwhile is found.
        Raises RuntimeCommandError when there is none.
        """
        prefix = [self._executable(), "--root", str(self._settings.root_dir), *self._settings.args]
        if self._systemd_cgroup:
            prefix.append("--systemd-cgroup")
        return prefix

    async def start(self, container_id: str) -> None:
        """Let a created container's process run; one that ended immediately was started.

        Raises NotFoundError, RuntimeCommandError, DeadlineError.
        """
        doing = self._doing("starting", container_id)
        done = await self._run("start", [container_id], doing)
        if done.ok:
            return
        if says_not_found(runtime_message(done.stderr_tail), container_id):
            raise NotFoundError(
                "container", container_id, f"{self._settings.name} does not know it"
            )
        raise self._failure("start", doing, done)

    async def kill(
        self, container_id: str, signal_number: int, *, all_processes: bool = False
    ) -> bool:
        """Signal the container's first process, or all of them; False when it isn't running or not there.

        With `all_processes` runtimes call it a success, too, when there was nobody left.

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
        """Set a container's limits: the file has the spec's `linux.resources`. What it leaves out stays as it is.

        Raises RuntimeCommandError, DeadlineError.
        """
        doing = self._doing("changing the resources of", container_id)
        done = await self._run("update", ["--resources", str(resources_file), container_id], doing)
        if not done.ok:
            raise self._failure("update", doing, done)

    async def delete(self, container_id: str, *, force: bool = False) -> None:
        """Forget a stopped container, with `force` kill and forget any; success when it is not there.

        `force` also clears the container's directory below the runtime's root: runc binds its own executable there
        for an instant, and one killed in that instant leaves a mount that its `delete --force` says nothing about.
        Cgroups that a runtime killed half-way left behind stay: those are the caller's to take away.
        Raises RuntimeCommandError, DeadlineError, OSError when that directory can't be cleared.
        """
        doing = self._doing("deleting", container_id)
        done = await self._run("delete", ["--force"] * force + [container_id], doing)
        if not done.ok and not says_not_found(runtime_message(done.stderr_tail), container_id):
            raise self._failure("delete", doing, done)
        leftover = self._settings.root_dir / container_id
        if force and container_id and leftover.is_dir():
            await in_time("clearing what the runtime left", _clear, leftover)

    async def state(self, container_id: str) -> RuntimeState | None:
        """What the runtime thinks of the container; None when it is not there.

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
                    doing, done.argv, "gave an answer that can't be read", str(error)
                ) from error
        if says_not_found(runtime_message(done.stderr_tail), container_id):
            return None
        raise self._failure("state", doing, done)

    def exec_detached_argv(
        self,
        container_id: str,
        *,
        process_file: Path,
        pid_file: Path,
        console_socket: Path | None = None,
    ) -> list[str]:
        """The command that runs one more process in the container, leaves it behind and writes its pid.

        The process gets the command's own standard streams, or with `terminal` in its file a terminal whose
        descriptor goes to `console_socket`.
        """
        argv = [*self.command_prefix(), "exec", "--detach"]
        argv += ["--process", str(process_file), "--pid-file", str(pid_file)]
        if console_socket is not None:
            argv += ["--console-socket", str(console_socket)]
        return [*argv, container_id]

    async def features(self) -> RuntimeFeatures | None:
        """What the runtime supports; None when it has no such command (crun before 1.8.6, kata-runtime, runsc)."""
        doing = f"asking {self._settings.name} for its features"
        done = await self._run("features", [], doing, max_stdout_bytes=MAX_ANSWER_BYTES)
        if not done.ok:
            return None
        try:
            return msgspec.json.decode(done.stdout, type=RuntimeFeatures)
        except UNREADABLE_DOCUMENT:
            return None

    async def version(self) -> RuntimeVersion:
        """What the runtime calls itself.

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
        self, command: str, args: list[str], doing: str, *, max_stdout_bytes: int = 0
    ) -> Completed:
        handler = self._settings.name
        argv = [*self.command_prefix(), command, *args]
        try:
            with (
                step(f"{handler} {command}"),
                metrics.OCI_COMMAND_SECONDS.labels(handler, command).time(),
            ):
                return await self._reaper.run(
                    argv,
                    timeout_s=self._timeout_s,
                    env=self.environment(),
                    max_stdout_bytes=max_stdout_bytes,
                )
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
    """`NAME version X`, and somewhere below `spec: Y`; kata-runtime writes `NAME  : X`."""
    lines = text.splitlines()
    name, *rest = lines[0].replace(" : ", " ").split() or [""]
    number = rest[-1] if rest else ""
    spec_version = ""
    for line in lines[1:]:
        key, separator, value = line.partition(":")
        if separator and key.strip() in ("spec", "OCI specs"):
            spec_version = value.strip()
    return RuntimeVersion(name, number, spec_version)
