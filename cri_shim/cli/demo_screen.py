"""How the demo tells what it does: numbered lines; on a terminal the running step's line becomes its result.

Elsewhere nothing is redrawn: a step's line is written when it begins, and its result below it.
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
        """Since the beginning."""
        return self._clock() - self._started_at

    def begin(self, name: str, doing: str, *, number: int, of: int) -> None:
        """A step begins: `name` is one word, `doing` says what happens."""
        self._step_started_at = self._clock()
        self._running = f"[{number}/{of}] {name.ljust(NAME_COLUMNS)} {doing}"
        if self._is_terminal:
            self._redraw(f"{self._running} ...")
        else:
            self._write(f"{self._running}\n")

    def detail(self, text: str) -> None:
        """How far the running step has come."""
        if self._is_terminal:
            self._redraw(f"{self._running}: {text}")
        else:
            self._write(f"      {text}\n")

    def end(self, name: str, result: str) -> None:
        """The step is done, with this to show for it; further lines of `result` stand below the first."""
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
        """The running step failed; the reason is the caller's to tell."""
        if self._is_terminal and self._running:
            mark = paint("✗", "red", enabled=self._coloured)
            self._write(f"{_ERASE_LINE}{mark} {name.ljust(NAME_COLUMNS)} failed\n")
        self._running = ""

    def say(self, line: str) -> None:
        """A line of its own, between steps."""
        self._write(f"{line}\n")

    def _redraw(self, line: str) -> None:
        self._write(_ERASE_LINE + line[: shutil.get_terminal_size().columns - 1])

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class ImportProgress(Progress):
    """An import's progress as details of the demo's step; its result is the demo's to tell."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(io.StringIO())  # everything is told through the screen
        self._screen = screen
        self._told = ""

    def show(self, step: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
        """Told once per step: a demo's image is small."""
        if step != self._told:
            self._told = step
            self._screen.detail(printable(step))

    def say(self, line: str) -> None:
        """Left to the demo."""

    def close(self) -> None:
        """Nothing is open here."""
