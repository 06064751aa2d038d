"""Handles signals that ask a command to end: the first is only noted, a second raises KeyboardInterrupt."""

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
    """A signal asked the command to end. Not a CriShimError, since nothing failed."""


class Interrupts:
    """The signals received so far."""

    def __init__(self, told: str) -> None:
        """`told` is written to standard error at the first signal."""
        self.received = 0
        """The number of the first signal, 0 for none."""
        self._told = told

    @classmethod
    @contextmanager
    def handled(cls, told: str) -> Iterator[Interrupts]:
        """Handle signals while the block runs. Signals that are ignored (nohup) stay ignored."""
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
        """Raise InterruptedCommandError if a signal was received."""
        if self.received:
            raise InterruptedCommandError

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        try:
            # Not through sys.stderr: the signal may have interrupted a write to it, and its buffer is not reentrant.
            os.write(_STDERR, f"\n{self._told}\n".encode())
        except OSError:
            pass  # the terminal is gone
