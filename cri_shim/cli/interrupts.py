"""Signals that ask a command to end, noted so that it can end in order: the first is noted, the second interrupts."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STDERR: Final = 2


class InterruptedCommandError(Exception):
    """The command was asked to end. Not a CriShimError: nothing failed."""


class Interrupts:
    """What has come so far."""

    def __init__(self, told: str) -> None:
        """`told` is written to standard error with the first signal."""
        self.received = 0
        """The signal's number, 0 for none yet."""
        self._told = told

    @classmethod
    @contextmanager
    def handled(cls, told: str) -> Iterator[Interrupts]:
        """Note signals as long as this is open; those that the caller ignores (nohup) stay ignored."""
        interrupts = cls(told)
        before = {number: signal.getsignal(number) for number in SIGNALS}
        ours = [number for number, handler in before.items() if handler != signal.SIG_IGN]
        try:
            for number in ours:
                signal.signal(number, interrupts._note)
            yield interrupts
        finally:
            for number in ours:
                signal.signal(number, before[number])

    def check(self) -> None:
        """Raise InterruptedCommandError once a signal has come."""
        if self.received:
            raise InterruptedCommandError

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        try:
            # Not through sys.stderr: the signal may have come in the middle of a write, which can't be entered again.
            os.write(_STDERR, f"\n{self._told}\n".encode())
        except OSError:
            pass  # a terminal that went away reads nothing
