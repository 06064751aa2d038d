"""A child process and how it ended.

Rules:
- Only the reaper reports the ending of a `Child`, on the event loop's thread.
- Signals go through a pidfd, which is closed at the ending. So no signal reaches a later process with the same pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import settled
from cri_shim.errors import DeadlineError
from cri_shim.host.pidfd import kill_pidfd
from cri_shim.prompt import Prompt

log = structlog.get_logger()
KILL_GRACE_S = 5.0
"""Time that a killed child may take to end. A child that hangs in the kernel must not block its caller for ever."""
_CORE_DUMPED = 0x80

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended."""

    wait_status: int
    """The status of wait(2)."""

    @property
    def exit_code(self) -> int:
        """The exit status; if a signal killed the process, 128 plus the signal's number, as in shells and in CRI."""
        code = os.waitstatus_to_exitcode(self.wait_status)
        return code if code >= 0 else 128 - code

    @property
    def signal(self) -> int | None:
        """The number of the signal that killed the process, or None."""
        code = os.waitstatus_to_exitcode(self.wait_status)
        return -code if code < 0 else None

    def describe(self) -> str:
        """A phrase to put behind the process's name: "exited with status 1"."""
        number = self.signal
        if number is None:
            return f"exited with status {self.exit_code}"
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:  # most real-time signals have no name in `signal.Signals`
            return f"was killed by signal {number}"


def ending_of(seen: os.waitid_result) -> Ending:
    """The ending that waitid(2) tells of a process that has ended."""
    if seen.si_code == os.CLD_EXITED:
        return Ending(seen.si_status << 8)
    return Ending(seen.si_status | (_CORE_DUMPED if seen.si_code == os.CLD_DUMPED else 0))


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ran to its end."""

    argv: tuple[str, ...]
    ending: Ending
    stdout: bytes
    stderr_tail: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.ending.wait_status == 0


class Child:
    """A child of this process. `argv` is empty for a claimed orphan.

    The reaper makes it with a pidfd, which this object closes, and calls `end` or `abandon` once.
    """

    def __init__(self, pid: int, argv: tuple[str, ...], pidfd: int | None) -> None:
        self.pid = pid
        self.argv = argv
        self._pidfd = pidfd
        self._ended: Prompt[Ending] = Prompt(loop=asyncio.get_running_loop())

    @property
    def pidfd(self) -> int | None:
        """A descriptor that is readable once the process has ended; None after `end` and `abandon`."""
        return self._pidfd

    @property
    def ending(self) -> Ending | None:
        """How the process ended; None while it runs, and if the reaper was closed before the ending."""
        if self._ended.done() and not self._ended.cancelled():
            return self._ended.result()
        return None

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for any more: the process ended, or the reaper was closed."""
        return self._ended.done()

    async def wait(self) -> Ending:
        """Wait for the ending. Several callers may wait; cancelling one does not affect the others.

        Raises CancelledError if the reaper is closed meanwhile.
        """
        return await asyncio.shield(self._ended)

    async def wait_at_most(self, timeout_s: float | None) -> Ending | None:
        """Wait for the ending at most `timeout_s` seconds, None for no limit. Returns None if the process still runs.

        Raises CancelledError if the reaper is closed meanwhile.
        """
        await settled(self._ended, timeout_s)
        if self._ended.cancelled():
            raise asyncio.CancelledError
        return self.ending

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when waiting has come to an end, soon if it has."""
        self._ended.add_done_callback(lambda _: callback())

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to the process. No effect once it has ended."""
        if self._pidfd is not None:
            kill_pidfd(self._pidfd, signal_number)

    def kill_group(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to the process group that a spawned child leads.

        No effect once the child has ended, since the group's number may belong to another group by then. No effect
        for a claimed orphan, which need not lead its group.
        """
        if self._pidfd is not None and self.argv:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal_number)

    def end(self, ending: Ending) -> None:
        """Record the ending. The process is a zombie, which the reaper is about to collect, or collected."""
        self._close_pidfd()
        if not self._ended.done():
            self._ended.set_result(ending)

    def abandon(self) -> None:
        """Cancel all waiting; the reaper is closed and will not collect the process."""
        self._close_pidfd()
        self._ended.cancel()

    def _close_pidfd(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


async def kill_and_wait(child: Child) -> None:
    """Kill the child's group and wait until the child has ended. A cancellation is raised only after that."""
    if child.settled:
        return
    child.kill_group()
    cancelled: asyncio.CancelledError | None = None
    give_up_at = time.monotonic() + KILL_GRACE_S
    while not child.settled and (left := give_up_at - time.monotonic()) > 0:
        try:
            await child.wait_at_most(left)
        except asyncio.CancelledError as error:
            cancelled = error
    if child.ending is None:
        log.error(
            "process still runs after SIGKILL; it may hang in the kernel",
            pid=child.pid,
            command=child.argv[0],
        )
    if cancelled is not None:
        raise cancelled


def too_late(program: str, timeout_s: float, said: str) -> DeadlineError:
    """The error of a command that was killed at its deadline, with the last of what it `said`."""
    said = said.strip()
    return DeadlineError(
        f"{program} did not finish within {timeout_s:g} s and was killed"
        + (f"; its last output: {said}" if said else "")
    )
