"""A daemon whose wall clock is set by a test, also while it runs; its monotonic clock goes on, as the kernel's does.

    python -m tests.faults.shifted_clock FILE serve --config FILE

FILE holds the seconds by which the clock is wrong. The kernel's own clock, which files and the monitors go by, stays.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.daemon import Daemon


class ShiftedClock:
    """The test's side: from its next start on, `daemon` goes by this clock."""

    def __init__(self, daemon: Daemon, file: Path) -> None:
        self._daemon = daemon
        self._file = file
        self._plain = daemon.command_line()
        self.shift(0)
        daemon.command_line = self._command_line  # type: ignore[method-assign]

    def shift(self, seconds: float) -> None:
        """Set the clock, at once, so far ahead of the right time, or behind it."""
        self._file.write_text(str(seconds))

    def end(self) -> None:
        """From its next start on, the daemon goes by the right time."""
        del self._daemon.command_line

    def _command_line(self, failpoint: str = "") -> list[str]:
        serve = self._plain[self._plain.index("serve") :]
        return [sys.executable, "-m", "tests.faults.shifted_clock", str(self._file), *serve]


def run(arguments: Sequence[str]) -> int:
    """Be `cri-shim` with what follows the first argument."""
    file, *rest = arguments
    right = time.time_ns

    def time_ns() -> int:
        return right() + int(float(Path(file).read_text() or 0) * 1e9)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
    return main(rest)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
