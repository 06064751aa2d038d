"""Shows the progress of long work: a bar that is redrawn on a terminal, plain lines elsewhere.

A plain line is written when a step begins and every `PLAIN_INTERVAL_S`, so that a log stays short, and a long step does
not look like a hang.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Final, TextIO

from cri_shim.cli.output import is_screen, printable

if TYPE_CHECKING:
    from collections.abc import Callable

BAR_COLUMNS: Final = 24
REDRAW_INTERVAL_S: Final = 0.1
PLAIN_INTERVAL_S: Final = 5.0
ERASE_LINE: Final = "\r\x1b[K"


class Progress:
    """Shows steps on `stream`."""

    def __init__(
        self,
        stream: TextIO,
        *,
        keeps_steps: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `keeps_steps` a step's bar replaces that of the step before, for many short steps."""
        self._stream = stream
        self._is_terminal = is_screen(stream)
        self._keeps_steps = keeps_steps
        self._clock = clock
        self._step = ""
        self._shown_at = float("-inf")
        self._is_bar_shown = False

    def show(self, step: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
        """Show the progress of a step. A `total_bytes` of 0 means unknown. Cheap to call often."""
        now = self._clock()
        interval = REDRAW_INTERVAL_S if self._is_terminal else PLAIN_INTERVAL_S
        is_complete = bool(total_bytes) and done_bytes >= total_bytes
        is_same = step == self._step or (not self._keeps_steps and bool(self._step))
        if is_same and now - self._shown_at < interval and not (is_complete and self._keeps_steps):
            return
        if step == self._step and is_complete and not self._is_terminal:
            return  # the line of the next step shows that this one is complete
        if not is_same:
            self._end_bar()
        self._step, self._shown_at = step, now
        if self._is_terminal:
            columns = shutil.get_terminal_size().columns
            line = bar_line(printable(step), done_bytes, total_bytes)[: columns - 1]
            self._stream.write(ERASE_LINE + line)
            self._is_bar_shown = True
        else:
            self._stream.write(plain_line(printable(step), done_bytes, total_bytes) + "\n")
        self._stream.flush()

    def say(self, line: str) -> None:
        """Write a line below the bar, which stays."""
        self._end_bar()
        self._stream.write(printable(line) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the bar, with the cursor at the start of a line."""
        self._end_bar()
        self._stream.flush()

    def _end_bar(self) -> None:
        if self._is_bar_shown:
            self._stream.write("\n" if self._keeps_steps else ERASE_LINE)
            self._is_bar_shown = False


def bar(share: float, columns: int) -> str:
    """`[######------]`, `columns` wide between its brackets."""
    filled = round(min(share, 1.0) * columns)
    return f"[{'#' * filled}{'-' * (columns - filled)}]"


def bar_line(step: str, done_bytes: int, total_bytes: int) -> str:
    """`[######------]  50%  unpacking layer 2 of 5  (1.5 of 3.0 MiB)`; without a total only the count."""
    if not total_bytes:
        return step + (f"  ({size_text(done_bytes)})" if done_bytes else "")
    share = min(done_bytes / total_bytes, 1.0)
    amount = f"{size_text(done_bytes)} of {size_text(total_bytes)}"
    return f"{bar(share, BAR_COLUMNS)} {share:4.0%}  {step}  ({amount})"


def plain_line(step: str, done_bytes: int, total_bytes: int) -> str:
    """`unpacking layer 2 of 5: 50%`."""
    if total_bytes and done_bytes:
        return f"{step}: {min(done_bytes / total_bytes, 1.0):.0%}"
    return step + (f": {size_text(done_bytes)}" if done_bytes else "")


def size_text(count: int) -> str:
    """`512 B`, `1.5 MiB`."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"
