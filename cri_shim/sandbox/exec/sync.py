"""ExecSync: runs a command in a container and returns its output.

Rules:
- Output is bounded while it is read, per stream and for all execs together. Output beyond a bound is read and dropped,
  and the exec still succeeds.
- Output that the process wrote before its end is in the pipe when it ends, so the pipes are read out then without
  waiting for more.
- A command that is missing or not executable ends with 127 or 126, as in a shell, with the error on stderr. It is not
  an error of the call, because a kubelet ignores errors of a probe's call: such a probe would never fail.
- At the deadline the process, its session and its descendants are killed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import DeadlineError, ProgramError
from cri_shim.host.capture import Allowance, Capture
from cri_shim.sandbox.exec import process as exec_process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.sandbox.exec.process import ExecCall, ExecProcesses
    from cri_shim.sandbox.store.store import Container


MAX_KEPT_BYTES = 256 << 20
"""Output of all running execs that is held in memory. While it is used up, further output is dropped."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The output of an exec, cut at the bound, and its exit code (128+n for signal n)."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class _Captured:
    """The command's streams: an empty stdin, and two pipes whose output is kept up to a bound."""

    stdin = None
    console_socket: Path | None = None

    def __init__(self, max_bytes: int, allowance: Allowance) -> None:
        self.out = Capture(max_bytes, allowance=allowance)
        try:
            self.err = Capture(max_bytes, allowance=allowance)
        except BaseException:
            self.out.close()
            raise

    @property
    def stdout(self) -> int:
        return self.out.write_fd

    @property
    def stderr(self) -> int:
        return self.err.write_fd

    def given(self) -> None:
        self.out.start()
        self.err.start()

    def error_output(self) -> str:
        self.err.drain()
        return self.err.text()

    def close(self) -> None:
        self.out.close()
        self.err.close()


class _Deadline:
    """The deadline of a call. There is none if `timeout_s` is 0."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time() + timeout_s if timeout_s > 0 else None

    def seconds_left(self) -> float | None:
        return None if self._at is None else max(self._at - self._loop.time(), 0)

    def seconds_to_start(self) -> float:
        most = exec_process.RUNTIME_TIMEOUT_S
        return min(self.timeout_s or most, most)


class Execs:
    """Runs commands in containers and waits for their end."""

    def __init__(
        self,
        processes: ExecProcesses,
        *,
        background: Background,
        max_output_bytes: int,
        max_answer_bytes: int,
    ) -> None:
        """`max_output_bytes` bounds each stream, `max_answer_bytes` the two together."""
        self._processes = processes
        self._background = background
        self._max_output_bytes = max_output_bytes
        self._max_answer_bytes = max_answer_bytes
        self._allowance = Allowance(MAX_KEPT_BYTES)

    async def exec_sync(
        self, container: Container, command: Sequence[str], timeout_s: int
    ) -> ExecResult:
        """Run `command`; `timeout_s` 0 means no deadline.

        Raises WrongStateError if the container does not run; RuntimeCommandError if the runtime cannot enter it;
        DeadlineError at the deadline, when the process and its descendants were killed.
        """
        call = self._processes.plan(container, command)
        deadline = _Deadline(timeout_s)
        try:
            return await self._background.owned(
                f"exec in {container.id}", self._run(call, deadline)
            )
        except asyncio.CancelledError:
            call.abandoned = True
            if call.child is not None:
                # The caller went away, so the process is killed in the background.
                self._background.start(
                    f"kill exec in {container.id}", self._processes.kill(call, call.child)
                )
            raise

    async def _run(self, call: ExecCall, deadline: _Deadline) -> ExecResult:
        files = self._processes.files(call.container)
        streams = _Captured(self._max_output_bytes, self._allowance)
        try:
            try:
                child = await self._processes.start(
                    call, files, streams, timeout_s=deadline.seconds_to_start()
                )
            except ProgramError as error:
                return ExecResult(b"", f"{error.words}\n".encode(), error.exit_code)
            if call.abandoned:
                await self._processes.kill(call, child)
            ended = await child.wait_at_most(deadline.seconds_left())
            if ended is None:
                await self._processes.kill(call, child)
                raise DeadlineError(
                    f"{call.what} did not end within {deadline.timeout_s:g} s and was killed with its descendants"
                )
            streams.out.drain()
            streams.err.drain()
            out, err = cut_to_fit(streams.out.data(), streams.err.data(), self._max_answer_bytes)
            return ExecResult(out, err, ended.exit_code)
        finally:
            streams.close()
            for file in files:
                file.unlink(missing_ok=True)


def cut_to_fit(stdout: bytes, stderr: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    """Cut the two streams to `max_bytes` together. A short stream leaves its unused share to the other."""
    half = max_bytes // 2
    stderr = stderr[: max(half, max_bytes - len(stdout))]
    return stdout[: max_bytes - len(stderr)], stderr
