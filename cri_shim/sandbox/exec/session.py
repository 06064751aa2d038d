"""Exec: a command in a container whose streams a client has, through the streaming server.

Rules:
- What comes out is descriptors, of pipes or of a terminal, and the process. Whoever takes them closes them; that is
  how the process learns that its client is gone. It isn't killed for it.
- Pipes hold a megabyte, so that neither side waits for each turn of the other.
- Each process is followed to its end, whoever still listens: its files, by which recovery would kill it, go with it.
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
    from cri_shim.paths import Paths
    from cri_shim.sandbox.exec.process import ExecCall, ExecProcesses
    from cri_shim.sandbox.store.store import Container

PIPE_BYTES = 1 << 20
PIPE_LEAST_BYTES = 4096
"""Any pipe holds these, so that nobody has to read meanwhile."""
MAX_ERROR_OUTPUT_BYTES = 64 << 10


class Command(Protocol):
    """What an exec's process is to whoever follows it."""

    async def wait(self) -> Ending:
        """How it ended, once it has."""


@dataclass(frozen=True, slots=True)
class ExecStreams:
    """A process that runs, and our ends of its streams, which the receiver closes; a terminal is both of the first."""

    stdin: int | None
    stdout: int | None
    stderr: int | None
    child: Command


class _NotRun:
    """A command that isn't there or can't be run: to who asked for it, one that said so and ended."""

    def __init__(self, exit_code: int) -> None:
        self._ending = Ending(exit_code << 8)

    async def wait(self) -> Ending:
        return self._ending


class _Pipes:
    """The command's streams as pipes; those not wanted are /dev/null, but stderr: the runtime may have to complain."""

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
        """The command's end and ours."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        theirs, ours = (reading, writing) if readable else (writing, reading)
        self._theirs.append(theirs)
        self._ours.append(ours)
        with contextlib.suppress(OSError):  # less does, too, where the node allows no more
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        # Programs open /dev/stdout anew, also users of the container's own user namespace.
        os.fchmod(theirs, 0o644 if readable else 0o622)
        os.set_blocking(ours, False)
        return theirs, ours

    def given(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())

    def error_output(self) -> str:
        return _read_all(self.our_stderr)

    def taken(self) -> None:
        """Ours are somebody else's to close."""
        self._ours.clear()

    def close(self) -> None:
        self.given()
        while self._ours:
            os.close(self._ours.pop())


class _Terminal:
    """The command's streams as a terminal; the runtime's own stderr is a pipe."""

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
    """Starts commands for clients."""

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
        """Start `command`; it goes on, and is followed to its end, whether or not the caller does.

        `size` is its terminal's width and height, if there is one and somebody has said.

        One that isn't there or can't be run is given as one that said so on stderr (on the terminal, with one) and
        ended with 127 or 126. Raises WrongStateError unless the container runs, RuntimeCommandError when the runtime
        can't enter it.
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
                if tty:
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
        if call.abandoned:  # nobody will take its descriptors
            close_streams(streams)
        else:
            opened.append(streams)
        return streams

    async def _start_with_pipes(
        self, call: ExecCall, files: tuple[Path, Path], *, stdin: bool, stdout: bool
    ) -> ExecStreams:
        with host_step(f"{call.what}: making its pipes"):
            pipes = _Pipes(stdin=stdin, stdout=stdout)
        try:
            child = await self._processes.start(
                call, files, pipes, timeout_s=exec_process.RUNTIME_TIMEOUT_S
            )
            pipes.taken()
            return ExecStreams(pipes.our_stdin, pipes.our_stdout, pipes.our_stderr, child)
        finally:
            pipes.close()

    async def _start_in_terminal(
        self, call: ExecCall, files: tuple[Path, Path], stack: contextlib.ExitStack
    ) -> ExecStreams:
        with host_step(f"{call.what}: making its terminal"):
            path = self._paths.console_dir / files[0].stem
            console = stack.enter_context(ConsoleSocket(path))
            terminal = _Terminal(console)
            stack.callback(terminal.close)
        child = await self._processes.start(
            call, files, terminal, timeout_s=exec_process.RUNTIME_TIMEOUT_S
        )
        master = console.receive()
        if master is None:
            await self._processes.kill(call.container, child)
            raise RuntimeCommandError(
                call.what, ["exec"], "gave no terminal", terminal.error_output()
            )
        try:
            # Two descriptors of one terminal, so that each direction can be closed on its own.
            with host_step(f"{call.what}: its terminal"):
                return ExecStreams(os.dup(master), master, None, child)
        except BaseException:
            os.close(master)
            raise

    async def _follow(self, child: Command, files: tuple[Path, Path]) -> None:
        # Cancelled, at the daemon's end, the files stay: the next one's recovery ends what nobody listens to.
        await child.wait()
        _remove(files)


def _not_run(call: ExecCall, error: ProgramError, *, tty: bool) -> ExecStreams:
    """What a client sees of a command that could not be run, as a shell would have told it."""
    with host_step(f"{call.what}: making a pipe"):
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    line_end = "\r\n" if tty else "\n"
    os.write(writing, f"{error.words}{line_end}".encode()[-PIPE_LEAST_BYTES:])
    os.close(writing)
    child = _NotRun(error.exit_code)
    return ExecStreams(None, reading if tty else None, None if tty else reading, child)


def close_streams(streams: ExecStreams) -> None:
    """What whoever took them does at the end."""
    for fd in (streams.stdin, streams.stdout, streams.stderr):
        if fd is not None:
            os.close(fd)


def _remove(files: tuple[Path, Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _read_all(fd: int) -> str:
    """What a writer that has ended left in a pipe."""
    try:
        return os.read(fd, MAX_ERROR_OUTPUT_BYTES).decode("utf-8", "replace")
    except BlockingIOError:
        return ""
