"""ExecSync: run a command in a container and return what it wrote.

The OCI runtime is asked for a *detached* exec with our pipes as the process's standard streams. The process becomes
our child (we are the subreaper), so its exit status and its end come to us directly; an attached exec would instead
hold the call until every grandchild closes the pipe, and keep the runtime's memory while it runs. Rules:
- A pid file means that the process ran; none means that the runtime refused, whatever its exit status.
- Output is bounded while it is read: what is beyond the bound is drained and dropped, and the exec still succeeds.
- What a process wrote before its end is in the pipe by then: after the end nothing is waited for.
- At the deadline the process, its session and its descendants die. What re-parented to the container's own init belongs
  to the container.
- While an exec runs its pid file stands in the container's exec directory: recovery kills what that names.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cri_shim import metrics
from cri_shim.errors import (
    DeadlineError,
    InvalidArgumentError,
    RuntimeCommandError,
    UnsupportedError,
    WrongStateError,
    host_step,
)
from cri_shim.host.capture import Capture
from cri_shim.host.files import write_atomic
from cri_shim.host.proctree import kill_family
from cri_shim.oci.complaints import runtime_message
from cri_shim.oci.spec.process import build_exec_process
from cri_shim.sandbox.model import ContainerState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cri_shim.background import Background
    from cri_shim.host.process import Child, Reaper
    from cri_shim.oci.runtime import Runtime
    from cri_shim.paths import Paths
    from cri_shim.sandbox.store import Container

KILL_TIMEOUT_S = 5.0
MAX_ERROR_TEXT = 4096
RUNTIME_TIMEOUT_S = 30.0
"""For the runtime to enter the container; the command's own time comes with the call."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What an exec wrote, cut at the bound, and how it ended (128+n for signal n)."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class _Call:
    """One exec under way."""

    def __init__(self, container: Container, command: list[str], timeout_s: int) -> None:
        self.container = container
        self.command = command
        self.abandoned = False
        """Its caller went away before the command had started."""
        self.child: Child | None = None
        """What runs of it: the runtime's command, then the command itself."""
        self._timeout_s = timeout_s
        now = asyncio.get_running_loop().time()
        self._deadline = now + timeout_s if timeout_s > 0 else None

    def seconds_left(self, *, at_most: float | None = None) -> float | None:
        """Until the deadline; None where there is none."""
        if self._deadline is None:
            return at_most
        left = max(self._deadline - asyncio.get_running_loop().time(), 0)
        return left if at_most is None else min(left, at_most)

    def too_late(self) -> DeadlineError:
        """What the caller is told at the deadline."""
        return DeadlineError(
            f"container {self.container.id}: exec {self.command[0]!r} did not end within "
            f"{self._timeout_s:g} s and was killed with all it had started"
        )

    def not_started(self, runtime: str) -> DeadlineError:
        """What the caller is told when the runtime takes too long."""
        seconds = min(self._timeout_s or RUNTIME_TIMEOUT_S, RUNTIME_TIMEOUT_S)
        return DeadlineError(
            f"container {self.container.id}: {runtime} did not start {self.command[0]!r} within "
            f"{seconds:g} s and was killed"
        )


class Execs:
    """Runs commands in running containers."""

    def __init__(
        self,
        *,
        paths: Paths,
        runtime_of: Callable[[str], Runtime],
        reaper: Reaper,
        background: Background,
        max_output_bytes: int,
        max_answer_bytes: int,
    ) -> None:
        """`max_output_bytes` bounds each stream, `max_answer_bytes` both together."""
        self._paths = paths
        self._runtime_of = runtime_of
        self._reaper = reaper
        self._background = background
        self._max_output_bytes = max_output_bytes
        self._max_answer_bytes = max_answer_bytes

    async def exec_sync(
        self, container: Container, command: Sequence[str], timeout_s: int
    ) -> ExecResult:
        """Run `command`; `timeout_s` 0 means no deadline.

        Raises WrongStateError unless the container runs, RuntimeCommandError when the command can't be started,
        DeadlineError after the deadline, with the process and its family dead.
        """
        if container.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {container.id} is {container.state}, not running")
        if not command:
            raise InvalidArgumentError("cmd: at least one word is needed")
        call = _Call(container, list(command), timeout_s)
        try:
            return await self._background.owned(f"exec in {container.id}", self._run(call))
        except asyncio.CancelledError:
            call.abandoned = True
            if call.child is not None:
                # The caller went away: what runs goes, too, but nobody waits for that.
                self._background.start(f"kill exec in {container.id}", self._kill(call.child))
            raise

    async def _run(self, call: _Call) -> ExecResult:
        exec_dir = self._paths.container(call.container.id).exec_dir
        exec_id = secrets.token_hex(8)
        files = exec_dir / f"{exec_id}.json", exec_dir / f"{exec_id}.pid"
        stdout = Capture(self._max_output_bytes)
        stderr = Capture(self._max_output_bytes)
        try:
            child = call.child = await self._start(call, files, (stdout, stderr))
            if call.abandoned:
                await self._kill(child)
            ended = await child.wait_at_most(call.seconds_left())
            if ended is None:
                await self._kill(child)
                raise call.too_late()
            stdout.drain()
            stderr.drain()
            out, err = cut_to_fit(stdout.data(), stderr.data(), self._max_answer_bytes)
            return ExecResult(out, err, ended.exit_code)
        finally:
            for capture in (stdout, stderr):
                capture.close()
            for file in files:
                file.unlink(missing_ok=True)

    async def _start(
        self, call: _Call, files: tuple[Path, Path], captures: tuple[Capture, Capture]
    ) -> Child:
        """The process that the runtime started in the container, now our child."""
        container, (spec_file, pid_file), (stdout, stderr) = call.container, files, captures
        runtime = self._runtime_of(container.record.handler)
        name = runtime.settings.name
        argv = runtime.exec_detached_argv(container.id, process_file=spec_file, pid_file=pid_file)
        with host_step(f"container {container.id}: exec: writing its process"):
            write_atomic(
                spec_file, msgspec.json.encode(self._process_spec(container, call.command))
            )
        with (
            self._reaper.awaiting_orphans(),
            metrics.OCI_COMMAND_SECONDS.labels(name, "exec").time(),
        ):
            try:
                starter = self._reaper.spawn(
                    argv, stdout=stdout.write_fd, stderr=stderr.write_fd, env=runtime.environment()
                )
            except OSError as error:
                raise RuntimeCommandError(
                    f"container {container.id}: exec", argv, "could not be run", str(error)
                ) from error
            call.child = starter
            stdout.start()
            stderr.start()
            ending = await starter.wait_at_most(call.seconds_left(at_most=RUNTIME_TIMEOUT_S))
            if ending is None:
                await self._kill(starter)
            # Also after a kill: the runtime may have come as far as starting the command.
            pid = _read_pid(pid_file)
            child = None if pid is None else self._reaper.claim(pid)
            if ending is None:
                if child is not None:
                    await self._kill(child)
                metrics.OCI_COMMAND_FAILURES.labels(name, "exec").inc()
                raise call.not_started(name)
            if pid is None:
                stderr.drain()
                metrics.OCI_COMMAND_FAILURES.labels(name, "exec").inc()
                raise RuntimeCommandError(
                    f"container {container.id}: exec {call.command[0]!r}",
                    argv,
                    ending.describe(),
                    runtime_message(stderr.text()[-MAX_ERROR_TEXT:]),
                )
            if child is None:
                raise UnsupportedError(
                    f"container {container.id}: exec: {name} does not hand its processes to us"
                )
            return child

    async def _kill(self, child: Child) -> None:
        if child.ending is not None:
            return  # collected: its number may be somebody else's by now
        await kill_family(child.pid, None, timeout_s=KILL_TIMEOUT_S)
        await child.wait_at_most(KILL_TIMEOUT_S)

    def _process_spec(self, container: Container, command: Sequence[str]) -> dict[str, object]:
        base = container.process_spec
        if base is None:
            spec_file = self._paths.container(container.id).spec_file
            base = container.process_spec = msgspec.json.decode(spec_file.read_bytes())["process"]
        return build_exec_process(base, command, tty=False)


def cut_to_fit(stdout: bytes, stderr: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    """Both streams from their beginnings, together at most `max_bytes`; a short one leaves its room to the other."""
    half = max_bytes // 2
    stderr = stderr[: max(half, max_bytes - len(stdout))]
    return stdout[: max_bytes - len(stderr)], stderr


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return None
