"""conmon, the monitor of one container: started, and found again.

Rules:
- One conmon per container runs the OCI runtime's `create`, holds the container's streams, writes its CRI log,
  reaps it and leaves the exit code as a decimal number in `exits_dir/ID`, by rename. When the kernel killed for
  want of memory it leaves an empty file `oom` in the persist directory, which is also its working directory.
- `--sync` makes it our direct child, so its pid is known when it is spawned. It outlives us: it leads a session of
  its own and has no descriptor of ours.
- **Write ahead**: conmon does nothing until its start pipe closes. `on_spawn` records it before that. Should the
  daemon die in between, the pipe closes all the same and conmon creates the container unrecorded: `find_monitors`
  finds such a one by its command line.
- A creation that fails, times out or is cancelled leaves no conmon and no `create` running; cgroup, bundle and the
  runtime's own state are the caller's to undo.
- The attach socket is `BUNDLE/attach` (`--full-attach`): conmon binds it through /proc/self/fd, so that its path may
  be of any length, and removes it at its end; the other form leaves a symbolic link behind for each container.
- Logs are not fsynced at a container's end (`--no-sync-log`): its exit would wait for the disk.
- The container gets a session keyring of its own (no `--no-new-keyring`): it must not share ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim import metrics
from cri_shim.errors import (
    ConfigError,
    DeadlineError,
    InvalidArgumentError,
    MonitorError,
    RuntimeCommandError,
)
from cri_shim.host.pidfd import parent_pid, start_time_ticks
from cri_shim.host.programs import find_program
from cri_shim.kernel_call import in_time
from cri_shim.oci import conmon_control
from cri_shim.oci.conmon_sync import MAX_REPORT_BYTES, Pipe, own_words, parse_report, read_line
from cri_shim.oci.runtime_errors import runtime_message
from cri_shim.operations import step
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from cri_shim.host.process import Child, Reaper
    from cri_shim.oci.runtime import Runtime

log = structlog.get_logger()

_FAREWELL_S = 2.0
"""How long a conmon that has reported a failure may take to end."""
_KILL_GRACE_S = 5.0
_SOCKET_PATH_BYTES = 107
_CONSOLE_NAME_BYTES = len("/conmon-term.XXXXXX")
_SHORT_ID = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRequest:
    """What one monitor is to look after."""

    container_id: str
    bundle_dir: Path
    """The OCI bundle; conmon puts its `ctl` and `winsz` pipes and its `attach` socket there."""
    pid_file: Path
    """Where the runtime writes the container's pid."""
    persist_dir: Path
    """Where `exit` and `oom` are left; exists, and belongs to this container alone."""
    log_file: Path | None
    """The CRI log; None for a container whose output nobody keeps."""
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False
    """Close stdin for good when the first attached client leaves."""


@dataclass(frozen=True, slots=True)
class MonitorIdentity:
    """A conmon process: number and start time in clock ticks since boot."""

    pid: int
    start_time_ticks: int


@dataclass(frozen=True, slots=True)
class Monitored:
    """A created container and its monitor."""

    monitor: MonitorIdentity
    container_pid: int


class Monitors:
    """Starts and addresses conmons. All calls happen on the reaper's loop."""

    def __init__(self, reaper: Reaper, conmon: str, *, exits_dir: Path, socket_dir: Path) -> None:
        """`conmon` is a path or a name in PATH; `socket_dir` is private and short, for terminals.

        Raises ConfigError when a socket in `socket_dir` would have too long a path.
        """
        self._reaper = reaper
        self._conmon = conmon
        self._exits_dir = exits_dir
        self._socket_dir = socket_dir
        self._started: dict[str, MonitorIdentity] = {}
        self._former: dict[str, list[MonitorIdentity]] | None = None
        self._looking = asyncio.Lock()
        room = _SOCKET_PATH_BYTES - _CONSOLE_NAME_BYTES - _SHORT_ID - 1
        if len(os.fsencode(socket_dir)) > room:
            raise ConfigError(
                f"state: {socket_dir} is too long for unix sockets below it, {room} bytes are allowed"
            )

    async def create(
        self,
        request: MonitorRequest,
        runtime: Runtime,
        *,
        timeout_s: float,
        on_spawn: Callable[[MonitorIdentity], None],
    ) -> Monitored:
        """Start a monitor and have the runtime create the container.

        `on_spawn` is called before the monitor may do anything; what it raises stops the creation.

        Raises:
            RuntimeCommandError: the runtime refused, in its own words; or there is no such runtime.
            MonitorError: conmon could not do its part; or there is no conmon.
            DeadlineError: no report within `timeout_s`.
            InvalidArgumentError: a log path that conmon can't be told.
        """
        handler = runtime.settings.name
        started = time.monotonic()
        try:
            with step(f"conmon and {handler} create"), self._console_dir(request) as console_dir:
                monitored = await self._create(request, runtime, console_dir, timeout_s, on_spawn)
        except (RuntimeCommandError, MonitorError, DeadlineError):
            metrics.OCI_COMMAND_FAILURES.labels(handler, "create").inc()
            raise
        metrics.OCI_COMMAND_SECONDS.labels(handler, "create").observe(time.monotonic() - started)
        return monitored

    async def reopen_log(self, bundle_dir: Path, log_file: Path, *, timeout_s: float = 5.0) -> None:
        """Have the monitor open a new file at `log_file`, whose old one has been renamed; see `conmon_control`.

        Raises WrongStateError when the monitor is gone, DeadlineError when it doesn't answer.
        """
        await conmon_control.reopen_log(bundle_dir, log_file, timeout_s=timeout_s)

    async def resize_terminal(
        self, bundle_dir: Path, width: int, height: int, *, timeout_s: float = 5.0
    ) -> None:
        """Give the container's terminal a size, in characters; see `conmon_control`.

        Raises WrongStateError when the monitor is gone, DeadlineError when it doesn't listen.
        """
        await conmon_control.resize_terminal(bundle_dir, width, height, timeout_s=timeout_s)

    def connect_attach(self, bundle_dir: Path) -> socket.socket:
        """A connection for one who attaches; see `conmon_control`.

        Raises WrongStateError when the monitor is gone, OSError.
        """
        return conmon_control.connect_attach(bundle_dir)

    async def version(self, *, timeout_s: float = 10.0) -> str:
        """conmon's version number.

        Raises MonitorError, DeadlineError.
        """
        argv = [self.executable(), "--version"]
        done = await self._reaper.run(argv, timeout_s=timeout_s)
        words = done.stdout.decode("utf-8", "replace").split()
        if not done.ok or len(words) < 3:
            raise MonitorError(
                "asking for its version", argv, done.ending.describe(), done.stderr_tail
            )
        return words[2]

    def discard(self, container_id: str) -> None:
        """Forget a container's monitor; remove what a creation that was cut short left in `socket_dir`, if anything."""
        self._started.pop(container_id, None)
        self._remove_console_dir(container_id)

    def _remove_console_dir(self, container_id: str) -> None:
        if container_id:
            shutil.rmtree(self._socket_dir / container_id[:_SHORT_ID], ignore_errors=True)

    async def monitors_of(self, container_id: str) -> list[MonitorIdentity]:
        """The monitors that a container has or had, noted or not; some may have ended.

        Those that this process started are known. Those of its predecessors are looked for once, for all containers.
        """
        async with self._looking:
            if self._former is None:
                former = await in_time("looking for monitors", self.find_monitors)
                # What this process started is known until it is discarded, and no longer.
                for started_id, monitor in self._started.items():
                    if monitor in former.get(started_id, ()):
                        former[started_id].remove(monitor)
                self._former = former
        found = list(self._former.get(container_id, ()))
        own = self._started.get(container_id)
        return found if own is None or own in found else [*found, own]

    def find_monitors(self, proc_dir: Path = Path("/proc")) -> dict[str, list[MonitorIdentity]]:
        """Every living conmon of this daemon's state directory by container ID, told by its command line.

        For recovery and wipe: it finds those that were started but not yet recorded. Synchronous, a file per process
        of the node: call it in a thread.
        """
        found: dict[int, str] = {}
        marker = b"--exit-dir\0" + os.fsencode(self._exits_dir) + b"\0"
        for entry in os.listdir(proc_dir):
            if not entry.isdecimal():
                continue
            try:
                command_line = (proc_dir / entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker in command_line:
                argv = command_line.split(b"\0")
                if b"--cid" in argv[:-1]:
                    found[int(entry)] = os.fsdecode(argv[argv.index(b"--cid") + 1])
        monitors: dict[str, list[MonitorIdentity]] = {}
        for pid, container_id in sorted(found.items()):
            ticks = start_time_ticks(pid)
            # A child of conmon that has not yet become the runtime still has its command line.
            if ticks is not None and parent_pid(pid) not in found:
                monitors.setdefault(container_id, []).append(MonitorIdentity(pid, ticks))
        return monitors

    async def _create(
        self,
        request: MonitorRequest,
        runtime: Runtime,
        console_dir: Path | None,
        timeout_s: float,
        on_spawn: Callable[[MonitorIdentity], None],
    ) -> Monitored:
        argv = self._argv(request, runtime.command_prefix())
        env = runtime.environment()
        if console_dir is not None:
            env["TMPDIR"] = str(console_dir)
        # conmon reads its options in the terms of its locale, and takes no path that is none there.
        env.setdefault("LC_ALL", "C.UTF-8")
        doing = f"creating container {request.container_id} (runtime handler {quoted(runtime.settings.name)})"
        with contextlib.ExitStack() as descriptors:
            sync, start, stderr = (Pipe(descriptors) for _ in range(3))
            env["_OCI_SYNCPIPE"] = str(sync.write_fd)
            env["_OCI_STARTPIPE"] = str(start.read_fd)
            try:
                child = self._reaper.spawn(
                    argv,
                    stdout=stderr.write_fd,  # where it complains of its options
                    stderr=stderr.write_fd,
                    env=env,
                    cwd=request.persist_dir,
                    pass_fds=(sync.write_fd, start.read_fd),
                )
            except OSError as error:
                raise MonitorError(doing, argv, "could not be started", str(error)) from error
            try:
                sync.close_write()
                start.close_read()
                stderr.close_write()
                monitor = MonitorIdentity(child.pid, start_time_ticks(child.pid) or 0)
                self._started[request.container_id] = monitor
                on_spawn(monitor)
                start.close_write()
                try:
                    async with asyncio.timeout(timeout_s):
                        line = await read_line(sync.read_fd, MAX_REPORT_BYTES)
                except TimeoutError:
                    raise DeadlineError(
                        f"{doing}: no answer within {timeout_s:g} s, the creation was stopped"
                    ) from None
                report = parse_report(line)
                if report is not None and report.pid > 0:
                    return Monitored(monitor, report.pid)
                if report is not None or not line:
                    # It is on its way out, and how it ends says something.
                    await child.wait_at_most(_FAREWELL_S)
            except BaseException:
                # Before the start pipe closes: an unrecorded monitor must not take that for its start.
                await _end(child)
                raise
            await _end(child)
            if report is not None:
                command = [*runtime.command_prefix(), "create", request.container_id]
                raise RuntimeCommandError(doing, command, "failed", runtime_message(report.message))
            raise MonitorError(doing, argv, _how_it_ended(child, line), own_words(stderr.read_fd))

    def _argv(self, request: MonitorRequest, runtime_prefix: list[str]) -> list[str]:
        argv = [
            *(self.executable(), "--sync", "--full-attach", "--no-sync-log"),
            *("--cid", request.container_id, "--cuuid", request.container_id),
            *("--bundle", str(request.bundle_dir)),
            *("--container-pidfile", str(request.pid_file)),
            *("--exit-dir", str(self._exits_dir)),
            *("--persist-dir", str(request.persist_dir)),
            *("--log-path", _log_driver(request.log_file)),
            *("--runtime", runtime_prefix[0]),
        ]
        argv += [f"--runtime-arg={option}" for option in runtime_prefix[1:]]
        if request.terminal:
            argv.append("--terminal")
        if request.stdin:
            argv.append("--stdin")
            if not request.stdin_once:
                argv.append("--leave-stdin-open")
        return argv

    def executable(self) -> str:
        """The path of conmon. Raises MonitorError when there is none."""
        found = find_program(self._conmon, os.environ.get("PATH", os.defpath))
        if found is None:
            raise MonitorError(
                "container monitor",
                [self._conmon],
                "was not found",
                "install it, or set runtime.monitor",
            )
        return found

    @contextlib.contextmanager
    def _console_dir(self, request: MonitorRequest) -> Iterator[Path | None]:
        """A directory for the socket over which the runtime hands a terminal to conmon.

        conmon makes the socket under a name of its own choice in TMPDIR, and one killed too early leaves it there.
        """
        if not request.terminal:
            yield None
            return
        directory = self._socket_dir / request.container_id[:_SHORT_ID]
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            yield directory
        finally:
            self._remove_console_dir(request.container_id)


async def _end(child: Child) -> None:
    """Kill conmon and the runtime's `create` beside it, and wait (bounded) until both are gone."""
    child.kill_group()
    give_up_at = time.monotonic() + _KILL_GRACE_S
    while time.monotonic() < give_up_at:
        try:
            # An orphan of the group is our child now and stays until the reaper has collected it.
            os.killpg(child.pid, 0)
        except (ProcessLookupError, PermissionError):  # gone, and perhaps somebody else's by now
            return
        await asyncio.sleep(0.002)
    log.error("killed monitor does not end", pid=child.pid, command=child.argv[0])


def _how_it_ended(child: Child, line: bytes) -> str:
    if line.strip():
        return f"gave a report that can't be read ({quoted(line)})"
    ending = "closed its report pipe" if child.ending is None else child.ending.describe()
    return f"{ending} without a report"


def _log_driver(log_file: Path | None) -> str:
    """The value of `--log-path`.

    Raises InvalidArgumentError for a path with a colon, at which conmon would cut it, or a control character.
    """
    if log_file is None:
        return "none"
    text = str(log_file)
    if not log_file.is_absolute() or ":" in text or any(ord(char) < 0x20 for char in text):
        raise InvalidArgumentError(
            f"log path {quoted(text)}: it must be absolute, and the container monitor takes no ':' or control character"
        )
    return f"k8s-file:{text}"
