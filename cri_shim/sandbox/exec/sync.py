"""ExecSync: run a command in a container and return what it wrote.

Rules:
- Output is bounded while it is read, for each stream and for all execs together: what is beyond a bound is drained and
  dropped, and the exec still succeeds.
- What a process wrote before its end is in the pipe by then: after the end nothing is waited for.
- A command that isn't there or can't be run has failed, as in a shell: 127 or 126, and why on stderr. A kubelet throws
  a probe's *errors* away, and a probe whose command is missing would never fail.
- At the deadline the process, its session and its descendants die.
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
"""Of the output of all execs under way. What comes while others hold all of it is dropped as what is beyond a bound."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What an exec wrote, cut at the bound, and how it ended (128+n for signal n)."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class _Captured:
    """The command's streams: nothing to read, and two pipes that are read within a bound."""

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
    """When the whole of a call is to be over; `timeout_s` 0 is never."""

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
    """Runs commands in running containers, and waits for them."""

    def __init__(
        self,
        processes: ExecProcesses,
        *,
        background: Background,
        max_output_bytes: int,
        max_answer_bytes: int,
    ) -> None:
        """`max_output_bytes` bounds each stream, `max_answer_bytes` both together."""
        self._processes = processes
        self._background = background
        self._max_output_bytes = max_output_bytes
        self._max_answer_bytes = max_answer_bytes
        self._allowance = Allowance(MAX_KEPT_BYTES)

    async def exec_sync(
        self, container: Container, command: Sequence[str], timeout_s: int
    ) -> ExecResult:
        """Run `command`; `timeout_s` 0 means no deadline.

        Raises WrongStateError unless the container runs, RuntimeCommandError when the runtime can't enter it,
        DeadlineError after the deadline, with the process and its family dead.
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
                # The caller went away: what runs goes, too, but nobody waits for that.
                self._background.start(
                    f"kill exec in {container.id}", self._processes.kill(container, call.child)
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
                await self._processes.kill(call.container, child)
            ended = await child.wait_at_most(deadline.seconds_left())
            if ended is None:
                await self._processes.kill(call.container, child)
                raise DeadlineError(
                    f"{call.what} did not end within {deadline.timeout_s:g} s and was killed with all it had started"
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
    """Both streams from their beginnings, together at most `max_bytes`; a short one leaves its room to the other."""
    half = max_bytes // 2
    stderr = stderr[: max(half, max_bytes - len(stdout))]
    return stdout[: max_bytes - len(stderr)], stderr
