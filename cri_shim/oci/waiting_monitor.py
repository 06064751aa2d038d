"""A started conmon that waits until the daemon tells it to create its container.

conmon takes some milliseconds to load, to open the log and to reach its start pipe. Who starts it early can prepare the
bundle meanwhile. Rules:
- Until `create` conmon only waits: it touches neither the bundle nor the OCI runtime. So the bundle must be complete
  when `create` is called, while the log's directory and conmon's own must exist when conmon starts.
- `end`, or a `create` that fails, ends conmon. After a `create` that succeeded conmon belongs to the container.
- If the daemon dies while conmon waits, the kernel closes the start pipe and conmon goes on. Without `config.json` in
  the bundle the runtime then refuses to create anything, and conmon exits.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim import metrics
from cri_shim.errors import DeadlineError, MonitorError, RuntimeCommandError
from cri_shim.host.proctree import kill_family
from cri_shim.oci.conmon_sync import MAX_REPORT_BYTES, own_words, parse_report, read_line
from cri_shim.oci.runtime_errors import runtime_message
from cri_shim.operations import step
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Sequence

    from cri_shim.host.process import Child
    from cri_shim.oci.conmon_sync import Pipe
    from cri_shim.oci.runtime import Runtime

log = structlog.get_logger()

_FAREWELL_S = 2.0
"""How long to wait for the exit of a conmon that has reported a failure."""
_KILL_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class MonitorIdentity:
    """A conmon process: pid, and start time in clock ticks since boot, which tells it from a later owner of the pid."""

    pid: int
    start_time_ticks: int


@dataclass(frozen=True, slots=True)
class Monitored:
    """A created container and its monitor."""

    monitor: MonitorIdentity
    container_pid: int


@dataclass(frozen=True, slots=True)
class MonitorPipes:
    """Our ends of what a conmon was given, and whatever else is to be let go of with them."""

    sync: Pipe
    start: Pipe
    stderr: Pipe
    owner: contextlib.ExitStack


class WaitingMonitor:
    """One conmon, until it has created its container or has ended. Made by `Monitors.start`."""

    def __init__(
        self,
        container_id: str,
        runtime: Runtime,
        child: Child,
        identity: MonitorIdentity,
        pipes: MonitorPipes,
        argv: Sequence[str],
        *,
        let_go: Callable[[Child], None],
    ) -> None:
        """`let_go` is told of a conmon that has created its container: its end is its container's watch's."""
        self.identity = identity
        self._container_id = container_id
        self._runtime = runtime
        self._child = child
        self._pipes = pipes
        self._argv = argv
        self._let_go = let_go
        self.is_waiting = True
        """Whether neither `create` nor `end` has been called."""

    async def create(self, *, timeout_s: float) -> Monitored:
        """Have the runtime create the container: once, when the bundle is complete.

        Raises:
            RuntimeCommandError: the runtime refused; its own message follows.
            MonitorError: conmon failed before it could report.
            DeadlineError: conmon did not report within `timeout_s`.
        """
        self.is_waiting = False
        handler = self._runtime.settings.name
        started = time.monotonic()
        try:
            with step(f"conmon and {handler} create"), self._pipes.owner:
                monitored = await self._create(timeout_s)
        except (RuntimeCommandError, MonitorError, DeadlineError):
            metrics.OCI_COMMAND_FAILURES.labels(handler, "create").inc()
            raise
        metrics.OCI_COMMAND_SECONDS.labels(handler, "create").observe(time.monotonic() - started)
        return monitored

    async def _create(self, timeout_s: float) -> Monitored:
        doing = f"creating container {self._container_id} (runtime handler {quoted(self._runtime.settings.name)})"
        child = self._child
        try:
            self._pipes.start.close_write()
            try:
                async with asyncio.timeout(timeout_s):
                    line = await read_line(self._pipes.sync.read_fd, MAX_REPORT_BYTES)
            except TimeoutError:
                raise DeadlineError(
                    f"{doing}: {self._argv[0]} did not report within {timeout_s:g} s; it was killed with the runtime's "
                    "create"
                ) from None
            report = parse_report(line)
            if report is not None and report.pid > 0:
                self._let_go(child)
                return Monitored(self.identity, report.pid)
            if report is not None or not line:
                # conmon is exiting. Wait for it: its exit status belongs into the error.
                await child.wait_at_most(_FAREWELL_S)
        except BaseException:
            await _kill(child)
            raise
        await _kill(child)
        if report is not None:
            command = [*self._runtime.command_prefix(), "create", self._container_id]
            raise RuntimeCommandError(doing, command, "failed", runtime_message(report.message))
        said = own_words(self._pipes.stderr.read_fd)
        raise MonitorError(doing, self._argv, _how_it_ended(child, line), said)

    async def end(self) -> None:
        """End conmon if it still waits: then nothing of the container exists, or will."""
        if not self.is_waiting:
            return
        self.is_waiting = False
        # Kill it before the start pipe closes: it would take that for its start.
        with self._pipes.owner:
            await _kill(self._child)


async def _kill(child: Child) -> None:
    """Kill conmon and the runtime's `create` below it, and wait, bounded, until both are gone."""
    if child.settled:
        return  # the pid may be another's by now; a `create` dies with its conmon
    gone = await kill_family(child.pid, None, timeout_s=_KILL_GRACE_S)
    if not gone or await child.wait_at_most(_KILL_GRACE_S) is None:
        log.error("a killed monitor does not exit", pid=child.pid, command=child.argv[0])


def _how_it_ended(child: Child, line: bytes) -> str:
    if line.strip():
        return f"sent a report that can't be parsed ({quoted(line)})"
    ending = "closed its sync pipe" if child.ending is None else child.ending.describe()
    return f"{ending} without a report"
