"""Starts commands in containers through the OCI runtime, and kills them with all their descendants.

The runtime runs a *detached* exec, with pipes of the daemon or a terminal as the process's standard streams. The daemon
is a subreaper, so the process becomes its child when the runtime exits, and the daemon collects the exit status. An
attached exec would block the call until every descendant closes the pipe, and keep the runtime in memory meanwhile.

Rules:
- A pid file means that the runtime started the process. Without one the exec failed, whatever the exit status.
- In a sandbox with its own kernel the child is the process that represents the command on the node. Some runtimes give
  such an exec its streams only in the attached form (`ExecCommand`), and write the pid file while they run on.
- While an exec runs, its pid file is in the container's exec directory. Recovery kills the processes named there.
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
from cri_shim.host.inotify import FILES_CHANGED, DirectoryWatch
from cri_shim.kernel_call import in_time
from cri_shim.oci.runtime import ExecFiles
from cri_shim.oci.runtime_errors import program_exit_code, runtime_message
from cri_shim.oci.shim.exec import ShimExec
from cri_shim.oci.shim.runtime import ShimRuntime
from cri_shim.oci.spec.process import build_exec_process, exec_base
from cri_shim.operations import step
from cri_shim.quoting import quoted
from cri_shim.sandbox.exec.shim_process import kill_in_shim, start_in_shim
from cri_shim.sandbox.store.model import ContainerState
from cri_shim.slots import Share, Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cri_shim.host.child import Child
    from cri_shim.host.port import Host
    from cri_shim.host.process import Reaper
    from cri_shim.oci.runtime import Runtime
    from cri_shim.paths import Paths
    from cri_shim.sandbox.exec.files_limits import FilesLimits
    from cri_shim.sandbox.store.store import Container

KILL_TIMEOUT_S = 5.0
MAX_ERROR_TEXT = 4096
MAX_STARTS = 32
"""Starts of execs in parallel. Each runtime process takes some 10 MB, and hundreds of probes may arrive at once."""
MAX_SLOW_STARTS = 64
"""Further starts that take long, so that all starts together take 1 GB at most, whatever pods do."""
MAX_STARTS_OF_POD = 8
"""Starts of one pod, slow ones included: a pod's files can make the runtime hang (a FIFO as /etc/passwd)."""
MAX_STARTS_OF_ONE = 4
"""Starts in one container."""
RUNTIME_TIMEOUT_S = 30.0
"""Limit for the runtime to start a command. The command's own timeout comes with the call."""


class ProcessStreams(Protocol):
    """The standard streams of the runtime and of the command."""

    @property
    def stdin(self) -> int | None:
        """None means /dev/null."""

    @property
    def stdout(self) -> int | None:
        """None means /dev/null."""

    @property
    def stderr(self) -> int:
        """The runtime writes its own errors here as well."""

    @property
    def console_socket(self) -> Path | None:
        """The socket to which the runtime sends the master of a terminal. The terminal is then all three streams."""

    def given(self) -> None:
        """The runtime has inherited the descriptors, so the daemon's copies can be closed."""

    def error_output(self) -> str:
        """The errors of the runtime, which has ended."""


@dataclass(eq=False, slots=True)
class ExecCall:
    """An exec."""

    container: Container
    command: Sequence[str]
    """The sequence from the request: thousands of words take several times more memory as Python strings."""
    abandoned: bool = False
    """The caller went away before the command was started."""
    size: tuple[int, int] | None = None
    """Width and height of the terminal, if known."""
    tty: bool = False
    """Whether a shim gives the process a terminal, behind the pipes of the daemon."""
    child: Child | ShimExec | None = None
    """The running process: first the runtime, then the command or the process that represents it."""
    files: ExecFiles | None = None
    """Set when the start begins."""

    @property
    def what(self) -> str:
        """The subject of an error message."""
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
        """`pids_of` lists the processes in a container's cgroup. It is called in threads.

        `slots` bounds the starts; the default has the bounds of the constants above.
        """
        self._host = host
        self._paths = paths
        self._runtime_of = runtime_of
        self._reaper = reaper
        self._files_limits = files_limits
        self._pids_of = pids_of
        self._slots = slots or Slots(MAX_STARTS, slow_total=MAX_SLOW_STARTS)

    def plan(self, container: Container, command: Sequence[str]) -> ExecCall:
        """Check the request. Raises WrongStateError if the container does not run, InvalidArgumentError."""
        if container.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {container.id} is {container.state}, not running")
        if not command:
            raise InvalidArgumentError("cmd: the command is empty")
        return ExecCall(container, command)

    def has_terminals_of_shims(self, container: Container) -> bool:
        """Whether its runtime makes terminals itself, and passes on what goes through pipes."""
        return isinstance(self._runtime_of(container.record.handler), ShimRuntime)

    def files(self, container: Container) -> ExecFiles:
        """New names of an exec's process specification and pid files. The caller removes the files in the end."""
        exec_dir = self._paths.container(container.id).exec_dir
        exec_id = secrets.token_hex(8)
        return ExecFiles(
            exec_dir / f"{exec_id}.json",
            exec_dir / f"{exec_id}.pid",
            exec_dir / f"{exec_id}.inner",
        )

    async def start(
        self,
        call: ExecCall,
        files: ExecFiles,
        streams: ProcessStreams,
        *,
        timeout_s: float,
    ) -> Child | ShimExec:
        """Wait for a slot and start the command. Returns its process, a child of the daemon or of a shim.

        Raises ProgramError if the command is missing or not executable; RuntimeCommandError if the runtime failed for
        another reason; DeadlineError after `timeout_s`, when all its processes were killed; UnsupportedError if the
        runtime's processes do not become children of the daemon; TooManyFilesError.
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
                raise DeadlineError(f"{call.what}: the caller went away before the start")
            return await self._start(
                call, files, streams, timeout_s=timeout_s, left_s=give_up_at - loop.time()
            )

    async def _start(
        self,
        call: ExecCall,
        files: ExecFiles,
        streams: ProcessStreams,
        *,
        timeout_s: float,
        left_s: float,
    ) -> Child | ShimExec:
        container = call.container
        runtime = self._runtime_of(container.record.handler)
        if isinstance(runtime, ShimRuntime):
            with host_step(f"container {container.id}: exec: writing its process"):
                _, cwd = self._write_process(call, files.process, tty=call.tty, env=())
            return await start_in_shim(call, files, streams, runtime, cwd, max(left_s, 0.001))
        name = runtime.settings.name
        tty = streams.console_socket is not None
        command = await runtime.exec_command(container.id, files, streams.console_socket)
        argv = command.argv
        with host_step(f"container {container.id}: exec: writing the process specification"):
            umask, cwd = self._write_process(call, files.process, tty=tty, env=command.env)
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
                    # runc's exec ignores the umask of the process specification, and the command inherits runc's.
                    umask=umask,
                )
            except OSError as error:
                raise RuntimeCommandError(
                    f"container {container.id}: exec", argv, "could not be run", str(error)
                ) from error
            call.child, call.files = starter, files
            streams.given()
            try:
                if command.attached:
                    started = await _has_started(starter, files.pid, max(left_s, 0))
                else:
                    started = await starter.wait_at_most(max(left_s, 0)) is not None
            except asyncio.CancelledError:  # `Slots` gave up this slow start, or the daemon stops
                await self._kill_start(call, starter, files.pid)
                raise
            if not started:
                await self.kill(call, starter)
            # Read it after a kill as well, since the runtime may have started the command.
            pid = _read_pid(files.pid)
            child = None if pid is None else self._reaper.claim(pid)
            if command.attached and pid is not None:
                child = starter
            if not started:
                if child is not None:
                    await self.kill(call, child)
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
                how = starter.ending.describe() if starter.ending else "did not run it"
                raise RuntimeCommandError(call.what, argv, how, said)
            if child is None:
                raise UnsupportedError(
                    f"container {container.id}: exec: the process that {name} started is not a child of the daemon"
                )
            call.child = child
        if runtime.settings.own_kernel:
            return child  # what entered the container is not among the node's processes
        try:
            await self._files_limits.hold(container)
        except (CriShimError, asyncio.CancelledError):
            await self.kill(call, child)
            raise
        return child

    async def _kill_start(self, call: ExecCall, starter: Child, pid_file: Path) -> None:
        await self.kill(call, starter)
        pid = _read_pid(pid_file)
        if pid is not None and (child := self._reaper.claim(pid)) is not None:
            await self.kill(call, child)

    async def kill(self, call: ExecCall, child: Child | ShimExec) -> None:
        """Kill the process, its session and its descendants, and wait for its end for a bounded time."""
        container = call.container
        if child.ending is not None:
            return  # it was collected, so the kernel may have reused its pid
        runtime = self._runtime_of(container.record.handler)
        if isinstance(child, ShimExec):
            pids = await in_time("looking at processes", self._pids_of, container)
            await kill_in_shim(self._host, call, child, runtime, pids)
            return
        if runtime.settings.own_kernel and call.files is not None:
            with step("ending it in its sandbox"):
                await runtime.end_exec(container.id, call.files, child.pid)
        await self._host.kill_family(
            child.pid,
            None,
            timeout_s=KILL_TIMEOUT_S,
            # Orphans are re-parented to the container's first process or to the daemon.
            strays=lambda: [*self._pids_of(container), *self._reaper.orphans()],
        )
        await child.wait_at_most(KILL_TIMEOUT_S)

    def _write_process(
        self, call: ExecCall, spec_file: Path, *, tty: bool, env: Sequence[str]
    ) -> tuple[int, str]:
        """Write the file without keeping a copy of the command.

        Returns the umask, -1 for that of the runtime, and the working directory.
        """
        container = call.container
        base = container.process_spec
        if base is None:
            file = self._paths.container(container.id).spec_file
            base = container.process_spec = exec_base(
                msgspec.json.decode(file.read_bytes())["process"]
            )
        process = build_exec_process(base, call.command, tty=tty, size=call.size)
        if env:
            process["env"] = [*process["env"], *env]
        write_new(spec_file, msgspec.json.encode(process))
        return process.get("user", {}).get("umask", -1), process["cwd"]


async def _has_started(starter: Child, pid_file: Path, timeout_s: float) -> bool:
    """Whether an attached command has left its pid file, or ended, within `timeout_s`."""
    changed = asyncio.Event()
    starter.on_end(changed.set)
    watch = DirectoryWatch(pid_file.parent, FILES_CHANGED, lambda _name: changed.set())
    try:
        async with asyncio.timeout(timeout_s):
            while _read_pid(pid_file) is None and not starter.settled:
                await changed.wait()
                changed.clear()
    except TimeoutError:
        return False
    finally:
        watch.close()
    return True


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
