"""Start conmon, the monitor of one container, and find monitors that a former daemon started.

Rules:
- Each container has one conmon. It runs the OCI runtime's `create`, holds the container's streams, writes its CRI log,
  reaps its process and writes the exit code as a decimal number to `exits_dir/ID`, which it renames into place. After
  an OOM kill it also creates an empty file `oom` in the persist directory, which is its working directory.
- `--sync` makes conmon our direct child, so we know its pid as soon as it is spawned. It still outlives us: it leads
  its own session and holds none of our descriptors.
- **Write ahead**: conmon does nothing until its start pipe closes (`waiting_monitor`), and `on_spawn` records its pid
  before that. If the daemon dies in between, the kernel closes the pipe and conmon creates the container unrecorded.
  `find_monitors` then finds it by its command line.
- A container that a runtime's `run` starts has no monitor. The same search finds the `run` itself (`command_lines`).
- A creation that fails, times out or is cancelled leaves no conmon and no runtime `create` running. The caller undoes
  the cgroup, the bundle and the runtime's own state.
- The attach socket is `BUNDLE/attach` (`--full-attach`). conmon binds it through /proc/self/fd, so its path may have
  any length, and removes it when it exits. Without the option conmon leaves a symbolic link behind per container.
- conmon doesn't fsync the log when the container exits (`--no-sync-log`): the exit would wait for the disk.
- The container gets its own session keyring (no `--no-new-keyring`), because it must not share the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import dataclass
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
from cri_shim.oci.command_lines import command_line, find_commands, started_by
from cri_shim.oci.conmon_sync import Pipe
from cri_shim.oci.waiting_monitor import MonitorIdentity, MonitorPipes, WaitingMonitor
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cri_shim.host.process import Reaper
    from cri_shim.oci.runtime import Runtime

log = structlog.get_logger()

_SOCKET_PATH_BYTES = 107
_CONSOLE_NAME_BYTES = len("/conmon-term.XXXXXX")
_SHORT_ID = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRequest:
    """The container that a monitor is started for."""

    container_id: str
    bundle_dir: Path
    """The OCI bundle. conmon creates its `ctl` and `winsz` pipes and its `attach` socket there."""
    pid_file: Path
    """The runtime writes the container's pid to this file."""
    persist_dir: Path
    """conmon writes `exit` and `oom` here. The directory exists and belongs to this container alone."""
    log_file: Path | None
    """The CRI log; None discards the container's output."""
    terminal: bool = False
    stdin: bool = False
    stdin_once: bool = False
    """Close the container's stdin for good when the first attached client leaves."""
    joins_sandbox: bool = False
    """Whether it is a container beside its pod's pause container."""


class Monitors:
    """Starts, finds and addresses conmon processes. All methods run on the reaper's event loop."""

    def __init__(self, reaper: Reaper, conmon: str, *, exits_dir: Path, socket_dir: Path) -> None:
        """`conmon` is a path or a name in PATH. `socket_dir` is private to the daemon and holds terminal sockets.

        Raises ConfigError when `socket_dir` is too long for a unix socket below it.
        """
        self._reaper = reaper
        self._conmon = conmon
        self._exits_dir = exits_dir
        self._state_dir = exits_dir.parent
        self._socket_dir = socket_dir
        self._started: dict[str, MonitorIdentity] = {}
        self._former: dict[str, list[MonitorIdentity]] | None = None
        self._looking = asyncio.Lock()
        room = _SOCKET_PATH_BYTES - _CONSOLE_NAME_BYTES - _SHORT_ID - 1
        if len(os.fsencode(socket_dir)) > room:
            raise ConfigError(
                f"state: {socket_dir} has {len(os.fsencode(socket_dir))} bytes; a unix socket below it leaves room for "
                f"{room}: configure a shorter path"
            )

    async def start(
        self,
        request: MonitorRequest,
        runtime: Runtime,
        *,
        on_spawn: Callable[[MonitorIdentity], None],
    ) -> WaitingMonitor:
        """Start a monitor, which waits. The directories of its log and its own must exist, the bundle need not.

        `on_spawn` runs before the monitor does anything. An exception from it ends the monitor.

        Raises:
            MonitorError: conmon is not installed, or could not be started.
            RuntimeCommandError: the runtime is not installed.
            InvalidArgumentError: conmon can't take this log path.
        """
        try:
            prefix = await runtime.create_prefix(joins_sandbox=request.joins_sandbox)
            waiting = self._spawn(request, runtime, prefix)
        except (RuntimeCommandError, MonitorError, DeadlineError):
            metrics.OCI_COMMAND_FAILURES.labels(runtime.settings.name, "create").inc()
            raise
        try:
            on_spawn(waiting.identity)
        except BaseException:
            await waiting.end()
            raise
        return waiting

    def _spawn(
        self, request: MonitorRequest, runtime: Runtime, runtime_prefix: list[str]
    ) -> WaitingMonitor:
        argv = self._argv(request, runtime_prefix)
        env = runtime.environment()
        # conmon parses its options in its locale; in the C locale it refuses a path that is not ASCII.
        env.setdefault("LC_ALL", "C.UTF-8")
        with contextlib.ExitStack() as owner:
            if request.terminal:
                env["TMPDIR"] = str(owner.enter_context(self._console_dir(request)))
            sync, start, stderr = (Pipe(owner) for _ in range(3))
            env["_OCI_SYNCPIPE"] = str(sync.write_fd)
            env["_OCI_STARTPIPE"] = str(start.read_fd)
            try:
                child = self._reaper.spawn(
                    argv,
                    stdout=stderr.write_fd,  # conmon prints complaints about its options to stdout
                    stderr=stderr.write_fd,
                    env=env,
                    cwd=request.persist_dir,
                    pass_fds=(sync.write_fd, start.read_fd),
                )
            except OSError as error:
                doing = f"starting the monitor of container {request.container_id}"
                raise MonitorError(doing, argv, "could not be started", str(error)) from error
            # Close our copies of conmon's ends: end of file then means that conmon closed its own, or died.
            sync.close_write()
            start.close_read()
            stderr.close_write()
            identity = MonitorIdentity(child.pid, start_time_ticks(child.pid) or 0)
            self._started[request.container_id] = identity
            pipes = MonitorPipes(sync, start, stderr, owner.pop_all())
            return WaitingMonitor(
                *(request.container_id, runtime, child, identity, pipes, argv),
                let_go=self._reaper.let_go,
            )

    async def reopen_log(self, bundle_dir: Path, log_file: Path, *, timeout_s: float = 5.0) -> None:
        """Have the monitor open a new file at `log_file`, after the caller renamed the old one (`conmon_control`).

        Raises WrongStateError when the monitor has exited, DeadlineError when it doesn't react within `timeout_s`.
        """
        await conmon_control.reopen_log(bundle_dir, log_file, timeout_s=timeout_s)

    async def resize_terminal(
        self, bundle_dir: Path, width: int, height: int, *, timeout_s: float = 5.0
    ) -> None:
        """Set the size of the container's terminal, in characters (`conmon_control`).

        Raises WrongStateError when the monitor has exited, DeadlineError when it doesn't read its control pipe.
        """
        await conmon_control.resize_terminal(bundle_dir, width, height, timeout_s=timeout_s)

    def connect_attach(self, bundle_dir: Path) -> socket.socket:
        """Connect to the container's attach socket (`conmon_control`).

        Raises WrongStateError when the monitor has exited, OSError.
        """
        return conmon_control.connect_attach(bundle_dir)

    async def version(self, *, timeout_s: float = 10.0) -> str:
        """Return conmon's version number, as in `conmon version 2.1.6`.

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
        """Forget a container's monitor, and remove the console directory that an interrupted creation left, if any."""
        self._started.pop(container_id, None)
        self._remove_console_dir(container_id)

    def _remove_console_dir(self, container_id: str) -> None:
        if container_id:
            shutil.rmtree(self._socket_dir / container_id[:_SHORT_ID], ignore_errors=True)

    async def monitors_of(self, container_id: str) -> list[MonitorIdentity]:
        """Every monitor this container has or had, and what still works of a runtime's `run`; some may have exited.

        This process knows the monitors it started. A `run` that forked before it was killed has left us an orphan.
        For those of former daemons it looks once, for all containers.
        """
        async with self._looking:
            if self._former is None:
                former = await in_time("looking for monitors", self.find_monitors)
                # `discard` must forget a monitor of ours, so it may not stay in the list of former ones.
                for started_id, monitor in self._started.items():
                    if monitor in former.get(started_id, ()):
                        former[started_id].remove(monitor)
                self._former = former
        found = list(self._former.get(container_id, ()))
        known = [self._started.get(container_id)]
        known += await in_time("looking at orphans", self._forked_for, container_id)
        return found + [each for each in known if each is not None and each not in found]

    def _forked_for(self, container_id: str) -> list[MonitorIdentity]:
        """The orphans that work on a `run` for this container: some runtimes fork first, and work in a session of
        their own."""
        return [
            MonitorIdentity(pid, ticks)
            for pid in self._reaper.orphans()
            if started_by(command_line(pid), self._state_dir) == container_id
            and (ticks := start_time_ticks(pid)) is not None
        ]

    def find_monitors(self) -> dict[str, list[MonitorIdentity]]:
        """Every conmon and every `run` of this daemon's state directory, by container ID, found by its command line.

        Recovery and wipe need this for what was started but not recorded. It blocks and reads a file per
        process of the node: call it in a thread.
        """
        found = find_commands(self._exits_dir, self._state_dir)
        monitors: dict[str, list[MonitorIdentity]] = {}
        for pid, container_id in sorted(found.items()):
            ticks = start_time_ticks(pid)
            # What either forks has its parent's command line until its own exec.
            if ticks is not None and parent_pid(pid) not in found:
                monitors.setdefault(container_id, []).append(MonitorIdentity(pid, ticks))
        return monitors

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
        # In one word each: conmon would take a separate word that begins with `-` for an option of its own.
        argv += [f"--runtime-arg={option}" for option in runtime_prefix[1:]]
        if request.terminal:
            argv.append("--terminal")
        if request.stdin:
            argv.append("--stdin")
            if not request.stdin_once:
                argv.append("--leave-stdin-open")
        return argv

    def executable(self) -> str:
        """The absolute path of conmon. Raises MonitorError when it is not installed."""
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
    def _console_dir(self, request: MonitorRequest) -> Iterator[Path]:
        """A private directory for the socket over which the runtime hands the terminal to conmon.

        conmon picks the socket's name below TMPDIR. If it is killed early, it leaves the socket there, so we give it
        a directory that we remove.
        """
        directory = self._socket_dir / request.container_id[:_SHORT_ID]
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            yield directory
        finally:
            self._remove_console_dir(request.container_id)


def _log_driver(log_file: Path | None) -> str:
    """The value of `--log-path`.

    Raises InvalidArgumentError for a path with a colon, where conmon would split it, or with a control character.
    """
    if log_file is None:
        return "none"
    text = str(log_file)
    if not log_file.is_absolute() or ":" in text or any(ord(char) < 0x20 for char in text):
        raise InvalidArgumentError(
            f"log path {quoted(text)}: it must be absolute, and conmon accepts no ':' and no control character in it"
        )
    return f"k8s-file:{text}"
