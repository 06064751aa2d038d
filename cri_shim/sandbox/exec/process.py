"""A command in a container: started detached, owned, and killed with all that it started.

The OCI runtime is asked for a *detached* exec with our pipes, or a terminal, as the process's standard streams. The
process becomes our child (we are the subreaper), so its exit status and its end come to us directly; an attached exec
would instead hold the call until every grandchild closes the pipe, and keep the runtime's memory while it runs. Rules:
- A pid file means that the process ran; none means that the runtime refused, whatever its exit status.
- What re-parented to the container's own init belongs to the container.
- While an exec runs its pid file stands in the container's exec directory: recovery kills what that names.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from cri_shim import metrics
from cri_shim.errors import (
    CriShimError,
    DeadlineError,
    InvalidArgumentError,
    ProgramError,
    RuntimeCommandError,
    UnsupportedError,
    WrongStateError,
    host_step,
)
from cri_shim.host.files import write_new
from cri_shim.oci.runtime_errors import program_exit_code, runtime_message
from cri_shim.oci.spec.process import build_exec_process, exec_base
from cri_shim.quoting import quoted
from cri_shim.sandbox.store.model import ContainerState
from cri_shim.slots import Share, Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cri_shim.host.port import Host
    from cri_shim.host.process import Child, Reaper
    from cri_shim.oci.runtime import Runtime
    from cri_shim.paths import Paths
    from cri_shim.sandbox.exec.files_limits import FilesLimits
    from cri_shim.sandbox.store.store import Container

KILL_TIMEOUT_S = 5.0
MAX_ERROR_TEXT = 4096
MAX_STARTS = 32
"""Runtimes that enter containers at one time: each takes some 10 MB, and hundreds of probes may come at once."""
MAX_SLOW_STARTS = 64
"""Of those that hang, beside the others: so that all of them together take some 1 GB, whatever pods do."""
MAX_STARTS_OF_POD = 8
"""Of both, for one pod: its files can make a runtime that enters it hang (a FIFO as /etc/passwd)."""
MAX_STARTS_OF_ONE = 4
"""Of those, for one of its containers."""
RUNTIME_TIMEOUT_S = 30.0
"""For the runtime to enter the container; the command's own time comes with the call."""


class ProcessStreams(Protocol):
    """What the command, and the runtime before it, gets as standard streams."""

    @property
    def stdin(self) -> int | None:
        """None: /dev/null."""

    @property
    def stdout(self) -> int | None:
        """None: /dev/null."""

    @property
    def stderr(self) -> int:
        """Where the runtime complains, too."""

    @property
    def console_socket(self) -> Path | None:
        """Where the runtime is to send a terminal, which then is all three of the command's streams."""

    def given(self) -> None:
        """The runtime has them: ours can be closed."""

    def error_output(self) -> str:
        """What the runtime wrote, now that it has ended."""


@dataclass(eq=False, slots=True)
class ExecCall:
    """One exec under way."""

    container: Container
    command: Sequence[str]
    """The request's own: thousands of words are several times larger as Python's."""
    abandoned: bool = False
    """Its caller went away before the command had started."""
    size: tuple[int, int] | None = None
    """Width and height of its terminal, if that is known."""
    child: Child | None = None
    """What runs of it: the runtime's command, then the command itself."""

    @property
    def what(self) -> str:
        """The beginning of a message about it."""
        return f"container {self.container.id}: exec {quoted(self.command[0])}"


class ExecProcesses:
    """Starts and kills commands in running containers."""

    def __init__(
        self,
        *,
        host: Host,
        paths: Paths,
        runtime_of: Callable[[str], Runtime],
        reaper: Reaper,
        files_limits: FilesLimits,
        pids_of: Callable[[Container], list[int]],
        slots: Slots | None = None,
    ) -> None:
        """`pids_of` lists the processes in a container's cgroup; it may be called in any thread.

        `slots` are for starts of commands; without, as many as the constants above say.
        """
        self._host = host
        self._paths = paths
        self._runtime_of = runtime_of
        self._reaper = reaper
        self._files_limits = files_limits
        self._pids_of = pids_of
        self._slots = slots or Slots(MAX_STARTS, slow_total=MAX_SLOW_STARTS)

    def plan(self, container: Container, command: Sequence[str]) -> ExecCall:
        """Everything that can be refused is refused here. Raises WrongStateError, InvalidArgumentError."""
        if container.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {container.id} is {container.state}, not running")
        if not command:
            raise InvalidArgumentError("cmd: at least one word is needed")
        return ExecCall(container, command)

    def files(self, container: Container) -> tuple[Path, Path]:
        """Where an exec's process and pid go, under a name that is new; the caller removes them at its end."""
        exec_dir = self._paths.container(container.id).exec_dir
        exec_id = secrets.token_hex(8)
        return exec_dir / f"{exec_id}.json", exec_dir / f"{exec_id}.pid"

    async def start(
        self,
        call: ExecCall,
        files: tuple[Path, Path],
        streams: ProcessStreams,
        *,
        timeout_s: float,
    ) -> Child:
        """Have the runtime start it, when its turn comes; the process, now our child.

        Raises ProgramError for a command that isn't there or can't be run, RuntimeCommandError when the runtime refused
        for another reason, with its words in both, DeadlineError after `timeout_s` with everything dead,
        UnsupportedError for a runtime whose processes don't come to us, TooManyFilesError.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        container = call.container
        async with self._slots.slot(
            call.what,
            Share(f"container {container.id}", MAX_STARTS_OF_ONE),
            Share(f"pod {container.sandbox_id}", MAX_STARTS_OF_POD),
            tenant=container.record.tenant,
            timeout_s=timeout_s,
        ):
            if call.abandoned:
                raise DeadlineError(f"{call.what}: its caller has gone")
            return await self._start(
                call, files, streams, timeout_s=timeout_s, left_s=give_up_at - loop.time()
            )

    async def _start(
        self,
        call: ExecCall,
        files: tuple[Path, Path],
        streams: ProcessStreams,
        *,
        timeout_s: float,
        left_s: float,
    ) -> Child:
        container, (spec_file, pid_file) = call.container, files
        runtime = self._runtime_of(container.record.handler)
        name = runtime.settings.name
        tty = streams.console_socket is not None
        argv = runtime.exec_detached_argv(
            container.id,
            process_file=spec_file,
            pid_file=pid_file,
            console_socket=streams.console_socket,
        )
        with host_step(f"container {container.id}: exec: writing its process"):
            umask, cwd = self._write_process(call, spec_file, tty=tty)
        with (
            self._reaper.awaiting_orphans(),
            metrics.OCI_COMMAND_SECONDS.labels(name, "exec").time(),
        ):
            try:
                starter = self._reaper.spawn(
                    argv,
                    stdin=streams.stdin,
                    stdout=streams.stdout,
                    stderr=streams.stderr,
                    env=runtime.environment(),
                    # runc's exec passes over the spec's: the command gets what its runtime has.
                    umask=umask,
                )
            except OSError as error:
                raise RuntimeCommandError(
                    f"container {container.id}: exec", argv, "could not be run", str(error)
                ) from error
            call.child = starter
            streams.given()
            try:
                ending = await starter.wait_at_most(max(left_s, 0))
            except asyncio.CancelledError:  # given up for others
                await self._kill_start(call.container, starter, pid_file)
                raise
            if ending is None:
                await self.kill(call.container, starter)
            # Also after a kill: the runtime may have come as far as starting the command.
            pid = _read_pid(pid_file)
            child = None if pid is None else self._reaper.claim(pid)
            if ending is None:
                if child is not None:
                    await self.kill(call.container, child)
                metrics.OCI_COMMAND_FAILURES.labels(name, "exec").inc()
                raise DeadlineError(
                    f"container {container.id}: {name} did not start {quoted(call.command[0])} within "
                    f"{timeout_s:g} s and was killed"
                )
            if pid is None:
                metrics.OCI_COMMAND_FAILURES.labels(name, "exec").inc()
                said = runtime_message(streams.error_output()[-MAX_ERROR_TEXT:])
                if code := program_exit_code(said, cwd):
                    raise ProgramError(call.what, said, code)
                raise RuntimeCommandError(call.what, argv, ending.describe(), said)
            if child is None:
                raise UnsupportedError(
                    f"container {container.id}: exec: {name} does not hand its processes to us"
                )
            call.child = child
        try:
            await self._files_limits.hold(container)
        except (CriShimError, asyncio.CancelledError):
            await self.kill(call.container, child)
            raise
        return child

    async def _kill_start(self, container: Container, starter: Child, pid_file: Path) -> None:
        await self.kill(container, starter)
        pid = _read_pid(pid_file)
        if pid is not None and (child := self._reaper.claim(pid)) is not None:
            await self.kill(container, child)

    async def kill(self, container: Container, child: Child) -> None:
        """Kill the process, its session and its descendants, and wait for its end."""
        if child.ending is not None:
            return  # collected: its number may be somebody else's by now
        await self._host.kill_family(
            child.pid,
            None,
            timeout_s=KILL_TIMEOUT_S,
            # Who lost its parent fell to the container's first process, or to us.
            strays=lambda: [*self._pids_of(container), *self._reaper.orphans()],
        )
        await child.wait_at_most(KILL_TIMEOUT_S)

    def _write_process(self, call: ExecCall, spec_file: Path, *, tty: bool) -> tuple[int, str]:
        """Nothing of its words stays here; returns its umask, -1 for the runtime's, and its working directory."""
        container = call.container
        base = container.process_spec
        if base is None:
            file = self._paths.container(container.id).spec_file
            base = container.process_spec = exec_base(
                msgspec.json.decode(file.read_bytes())["process"]
            )
        process = build_exec_process(base, call.command, tty=tty, size=call.size)
        write_new(spec_file, msgspec.json.encode(process))
        return process.get("user", {}).get("umask", -1), process["cwd"]


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
