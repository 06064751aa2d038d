"""The demo's output: numbered steps.

On a terminal the line of the running step is replaced by its result. Elsewhere a line is written when a step begins,
and its result below.
"""

from __future__ import annotations

import io
import shutil
import time
from typing import TYPE_CHECKING, Final, TextIO

from cri_shim.cli.output import paint, printable, wants_colour
from cri_shim.cli.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

NAME_COLUMNS: Final = 10
_ERASE_LINE: Final = "\r\x1b[K"


class Screen:
    """The demo's output on `stream`, with the total time."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._coloured = wants_colour(stream)
        self._clock = clock
        self._started_at = self._step_started_at = clock()
        self._running = ""

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started_at

    def begin(self, name: str, doing: str, *, number: int, of: int) -> None:
        """Show that a step begins. `name` is one word, `doing` describes the step."""
        self._step_started_at = self._clock()
        self._running = f"[{number}/{of}] {name.ljust(NAME_COLUMNS)} {doing}"
        if self._is_terminal:
            self._redraw(f"{self._running} ...")
        else:
            self._write(f"{self._running}\n")

    def detail(self, text: str) -> None:
        """Show progress of the running step."""
        if self._is_terminal:
            self._redraw(f"{self._running}: {text}")
        else:
            self._write(f"      {text}\n")

    def end(self, name: str, result: str) -> None:
        """Show the result of the running step; its further lines are indented below the first."""
        seconds = f"({self._clock() - self._step_started_at:.2f} s)"
        first, *others = [printable(line) for line in result.splitlines()]
        if self._is_terminal:
            mark = paint("✓", "green", enabled=self._coloured)
            word = paint(name.ljust(NAME_COLUMNS), "bold", enabled=self._coloured)
            self._write(f"{_ERASE_LINE}{mark} {word} {first} {seconds}\n")
        else:
            self._write(f"      {first} {seconds}\n")
        indent = " " * (NAME_COLUMNS + 3 if self._is_terminal else 6)
        for line in others:
            self._write(f"{indent}{line}\n")
        self._running = ""

    def fail(self, name: str) -> None:
        """Show that the running step failed. The caller reports the reason."""
        if self._is_terminal and self._running:
            mark = paint("✗", "red", enabled=self._coloured)
            self._write(f"{_ERASE_LINE}{mark} {name.ljust(NAME_COLUMNS)} failed\n")
        self._running = ""

    def say(self, line: str) -> None:
        """Write a line between steps."""
        self._write(f"{line}\n")

    def _redraw(self, line: str) -> None:
        self._write(_ERASE_LINE + line[: shutil.get_terminal_size().columns - 1])

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class ImportProgress(Progress):
    """Shows an import's progress as details of the demo's step. The demo shows the result."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(io.StringIO())  # all output goes through the screen
        self._screen = screen
        self._told = ""

    def show(self, step: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
        """Show each step once, without its progress: the demo's image is small."""
        if step != self._told:
            self._told = step
            self._screen.detail(printable(step))

    def say(self, line: str) -> None:
        """Drop the line; the demo shows the result."""

    def close(self) -> None:
        """Do nothing: there is no bar to end."""
