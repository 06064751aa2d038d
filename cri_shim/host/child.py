"""One child process and the way it ended.

Rules: a `Child` learns its ending from the reaper only, on the loop's thread. Signals go through a pidfd that is
closed with the ending, so that nothing can reach a later process of the same number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass

from cri_shim.background import settled
from cri_shim.host.pidfd import kill_pidfd


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended."""

    wait_status: int
    """As wait(2) gives it."""

    @property
    def exit_code(self) -> int:
        """The exit status; 128 plus the signal's number when killed, as shells and CRI have it."""
        code = os.waitstatus_to_exitcode(self.wait_status)
        return code if code >= 0 else 128 - code

    @property
    def signal(self) -> int | None:
        """The signal that killed it, if one did."""
        code = os.waitstatus_to_exitcode(self.wait_status)
        return -code if code < 0 else None

    def describe(self) -> str:
        """The end of a sentence that begins with the process: "exited with status 1"."""
        number = self.signal
        if number is None:
            return f"exited with status {self.exit_code}"
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:  # most real-time signals have no name
            return f"was killed by signal {number}"


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
    """A process whose ending comes to us. `argv` is empty for a claimed orphan.

    Made by the reaper, which passes a pidfd that this object closes, and calls `end` or `abandon` once.
    """

    def __init__(self, pid: int, argv: tuple[str, ...], pidfd: int | None) -> None:
        self.pid = pid
        self.argv = argv
        self._pidfd = pidfd
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    @property
    def ending(self) -> Ending | None:
        """How it ended; None while it runs, and for ever when the reaper was closed before."""
        if self._ended.done() and not self._ended.cancelled():
            return self._ended.result()
        return None

    @property
    def settled(self) -> bool:
        """Whether waiting has come to an end: with an ending, or because the reaper was closed."""
        return self._ended.done()

    async def wait(self) -> Ending:
        """Wait for the end; any number of waiters, and cancelling one disturbs no other.

        Raises CancelledError when the reaper is closed meanwhile.
        """
        return await asyncio.shield(self._ended)

    async def wait_at_most(self, timeout_s: float | None) -> Ending | None:
        """Wait for the end; None when it has not come within `timeout_s`.

        Raises CancelledError when the reaper is closed meanwhile.
        """
        await settled(self._ended, timeout_s)
        if self._ended.cancelled():
            raise asyncio.CancelledError
        return self.ending

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Signal the process; silent when it has ended."""
        if self._pidfd is not None:
            kill_pidfd(self._pidfd, signal_number)

    def kill_group(self, signal_number: int = signal.SIGKILL) -> None:
        """Signal the process group that a spawned child leads; silent when the child has ended.

        It does nothing after the end: the group's number could by then be somebody else's. Nor for a claimed
        orphan, whose group isn't known to be its own.
        """
        if self._pidfd is not None and self.argv:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal_number)

    def end(self, ending: Ending) -> None:
        """The reaper's word: it has been collected."""
        self._close_pidfd()
        if not self._ended.done():
            self._ended.set_result(ending)

    def abandon(self) -> None:
        """The reaper's word: nobody will collect it."""
        self._close_pidfd()
        self._ended.cancel()

    def _close_pidfd(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
