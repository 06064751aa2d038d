"""Exec: runs a command in a container whose streams a client has, through the streaming server.

Rules:
- A start returns the process and descriptors of pipes or a terminal. The receiver closes the descriptors. The process
  of a client that goes away is not killed: it sees end-of-file, or its output fails.
- Pipes hold a mebibyte, so that the two sides do not have to take turns.
- Each process is followed to its end, also without a client. Then its files are removed, from which recovery would kill
  it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cri_shim.errors import ProgramError, RuntimeCommandError, host_step
from cri_shim.host.child import Ending
from cri_shim.host.console import ConsoleSocket
from cri_shim.sandbox.exec import process as exec_process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.oci.runtime import ExecFiles
    from cri_shim.paths import Paths
    from cri_shim.sandbox.exec.process import ExecCall, ExecProcesses
    from cri_shim.sandbox.store.store import Container

PIPE_BYTES = 1 << 20
PIPE_LEAST_BYTES = 4096
"""Every pipe holds as much, so writing that never blocks."""
MAX_ERROR_OUTPUT_BYTES = 64 << 10


class Command(Protocol):
    """A started command."""

    async def wait(self) -> Ending:
        """Wait for the end, and return how the command ended."""


@dataclass(frozen=True, slots=True)
class ExecStreams:
    """A running command and the daemon's ends of its streams, which the receiver closes.

    With a terminal, `stdin` and `stdout` are two descriptors of it.
    """

    stdin: int | None
    stdout: int | None
    stderr: int | None
    child: Command


class _NotRun:
    """Stands for a command that is missing or not executable. The client sees it end with that exit code."""

    def __init__(self, exit_code: int) -> None:
        self._ending = Ending(exit_code << 8)

    async def wait(self) -> Ending:
        return self._ending


class _Pipes:
    """Pipes as the command's streams. Unused ones are /dev/null, except stderr, to which the runtime writes errors."""

    console_socket: Path | None = None

    def __init__(self, *, stdin: bool, stdout: bool) -> None:
        self._theirs: list[int] = []
        self._ours: list[int] = []
        self.stdin: int | None = None
        self.our_stdin: int | None = None
        self.stdout: int | None = None
        self.our_stdout: int | None = None
        try:
            if stdin:
                self.stdin, self.our_stdin = self._pipe(readable=True)
            if stdout:
                self.stdout, self.our_stdout = self._pipe(readable=False)
            self.stderr, self.our_stderr = self._pipe(readable=False)
        except BaseException:
            self.close()
            raise

    def _pipe(self, *, readable: bool) -> tuple[int, int]:
        """Create a pipe. Returns the command's end and the daemon's."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        theirs, ours = (reading, writing) if readable else (writing, reading)
        self._theirs.append(theirs)
        self._ours.append(ours)
        with contextlib.suppress(
            OSError
        ):  # where the node limits pipe sizes, the default size works, too
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        # Programs reopen /dev/stdout, also under another user or in a user namespace, so the mode must allow it.
        os.fchmod(theirs, 0o644 if readable else 0o622)
        os.set_blocking(ours, False)
        return theirs, ours

    def given(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())

    def error_output(self) -> str:
        return _read_all(self.our_stderr)

    def taken(self, *, stderr: bool) -> int | None:
        """The daemon's ends have a new owner, who closes them; stderr only if it is wanted. Returns that one."""
        self._ours = [] if stderr else [self.our_stderr]
        return self.our_stderr if stderr else None

    def close(self) -> None:
        self.given()
        while self._ours:
            os.close(self._ours.pop())


class _Terminal:
    """A terminal as the command's streams, and a pipe as the runtime's stderr."""

    stdin = stdout = None

    def __init__(self, console: ConsoleSocket) -> None:
        self.console_socket: Path | None = console.path
        self._reading, self.stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.stderr, True)

    def given(self) -> None:
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1

    def error_output(self) -> str:
        return _read_all(self._reading)

    def close(self) -> None:
        self.given()
        os.close(self._reading)


class ExecSessions:
    """Starts commands for streaming clients."""

    def __init__(self, processes: ExecProcesses, *, paths: Paths, background: Background) -> None:
        self._processes = processes
        self._paths = paths
        self._background = background

    async def open(
        self,
        container: Container,
        command: Sequence[str],
        *,
        stdin: bool,
        stdout: bool,
        tty: bool,
        size: tuple[int, int] | None = None,
    ) -> ExecStreams:
        """Start `command`. The start completes, and the command runs on, also if the caller is cancelled.

        `size` is the width and height of the terminal, if known.

        A command that is missing or not executable behaves as one that wrote the error to stderr, or to the terminal,
        and ended with 127 or 126. Raises WrongStateError if the container does not run, RuntimeCommandError if the
        runtime cannot enter it, and what `ExecProcesses.start` raises.
        """
        call = self._processes.plan(container, command)
        call.size = size
        opened: list[ExecStreams] = []
        try:
            return await self._background.owned(
                f"start exec in {container.id}",
                self._open(call, opened, stdin=stdin, stdout=stdout, tty=tty),
            )
        except asyncio.CancelledError:
            call.abandoned = True
            for streams in opened:
                close_streams(streams)
            raise

    async def _open(
        self, call: ExecCall, opened: list[ExecStreams], *, stdin: bool, stdout: bool, tty: bool
    ) -> ExecStreams:
        files = self._processes.files(call.container)
        try:
            with contextlib.ExitStack() as stack:
                call.tty = tty
                if tty and not self._processes.has_terminals_of_shims(call.container):
                    streams = await self._start_in_terminal(call, files, stack)
                else:
                    streams = await self._start_with_pipes(call, files, stdin=stdin, stdout=stdout)
        except ProgramError as error:
            _remove(files)
            streams = _not_run(call, error, tty=tty)
        except BaseException:
            _remove(files)
            raise
        self._background.keep(f"exec in {call.container.id}", self._follow(streams.child, files))
        if call.abandoned:  # no caller will take the descriptors
            close_streams(streams)
        else:
            opened.append(streams)
        return streams

    async def _start_with_pipes(
        self, call: ExecCall, files: ExecFiles, *, stdin: bool, stdout: bool
    ) -> ExecStreams:
        with host_step(f"{call.what}: creating pipes"):
            pipes = _Pipes(stdin=stdin, stdout=stdout)
        try:
            child = await self._processes.start(
                call, files, pipes, timeout_s=exec_process.RUNTIME_TIMEOUT_S
            )
            stderr = pipes.taken(stderr=not call.tty)
            return ExecStreams(pipes.our_stdin, pipes.our_stdout, stderr, child)
        finally:
            pipes.close()

    async def _start_in_terminal(
        self, call: ExecCall, files: ExecFiles, stack: contextlib.ExitStack
    ) -> ExecStreams:
        with host_step(f"{call.what}: creating the console socket"):
            path = self._paths.console_dir / files.process.stem
            console = stack.enter_context(ConsoleSocket(path))
            terminal = _Terminal(console)
            stack.callback(terminal.close)
        child = await self._processes.start(
            call, files, terminal, timeout_s=exec_process.RUNTIME_TIMEOUT_S
        )
        master = console.receive()
        if master is None:
            await self._processes.kill(call, child)
            raise RuntimeCommandError(
                call.what, ["exec"], "sent no terminal", terminal.error_output()
            )
        try:
            # Two descriptors of one terminal, so that each direction can be closed separately.
            with host_step(f"{call.what}: duplicating the terminal's descriptor"):
                return ExecStreams(os.dup(master), master, None, child)
        except BaseException:
            os.close(master)
            raise

    async def _follow(self, child: Command, files: ExecFiles) -> None:
        # When the daemon stops, this is cancelled and the files stay: recovery kills execs that lost their daemon.
        await child.wait()
        _remove(files)


def _not_run(call: ExecCall, error: ProgramError, *, tty: bool) -> ExecStreams:
    """The streams of a command that could not be started: the error, as a shell would print it, and the exit code."""
    with host_step(f"{call.what}: creating a pipe"):
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    line_end = "\r\n" if tty else "\n"
    os.write(writing, f"{error.words}{line_end}".encode()[-PIPE_LEAST_BYTES:])
    os.close(writing)
    child = _NotRun(error.exit_code)
    return ExecStreams(None, reading if tty else None, None if tty else reading, child)


def close_streams(streams: ExecStreams) -> None:
    """Close the descriptors. The receiver of the streams calls this in the end."""
    for fd in (streams.stdin, streams.stdout, streams.stderr):
        if fd is not None:
            os.close(fd)


def _remove(files: ExecFiles) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _read_all(fd: int) -> str:
    """Read the output of a writer that has ended."""
    try:
        return os.read(fd, MAX_ERROR_OUTPUT_BYTES).decode("utf-8", "replace")
    except BlockingIOError:
        return ""
