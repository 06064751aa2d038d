from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING

from cri_shim.cli.demo_screen import ImportProgress, Screen

if TYPE_CHECKING:
    import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen_on(stream: io.StringIO) -> Screen:
    ticks = itertools.count()
    return Screen(stream, clock=lambda: float(next(ticks)))


def test_elsewhere_a_step_is_a_plain_line_with_its_result_below() -> None:
    stream = io.StringIO()
    screen = screen_on(stream)
    screen.begin("pod", "running it", number=3, of=9)
    screen.detail("half way")
    screen.end("pod", "it runs\nvery well")
    screen.say("done")
    assert stream.getvalue() == (
        "[3/9] pod        running it\n      half way\n      it runs (1.00 s)\n      very well\ndone\n"
    )


def test_on_a_terminal_the_result_takes_the_steps_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    screen = screen_on(stream)
    screen.begin("pod", "running it", number=3, of=9)
    screen.end("pod", "it runs")
    running, result = stream.getvalue().split("\r\x1b[K")[1:]
    assert running == "[3/9] pod        running it ..."
    assert result == "✓ pod        it runs (1.00 s)\n"


def test_on_a_terminal_a_running_step_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    screen = screen_on(stream)
    screen.begin("pod", "x" * 100, number=3, of=9)
    assert len(stream.getvalue().split("\r\x1b[K")[1]) == 29


def test_a_failed_step_is_marked_on_a_terminal_and_silent_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for stream, shown in ((Terminal(), "✗ pod        failed\n"), (io.StringIO(), "")):
        screen = screen_on(stream)
        screen.begin("pod", "running it", number=3, of=9)
        before = len(stream.getvalue())
        screen.fail("pod")
        assert stream.getvalue()[before:].removeprefix("\r\x1b[K") == shown


def test_what_a_result_holds_can_not_command_the_terminal() -> None:
    stream = Terminal()
    screen = screen_on(stream)
    screen.begin("log", "reading", number=1, of=1)
    screen.end("log", "evil \x1b[2J text")
    assert "\x1b[2J" not in stream.getvalue()


def test_an_import_tells_each_step_once_and_leaves_the_result_to_the_demo() -> None:
    stream = io.StringIO()
    progress = ImportProgress(screen_on(stream))
    for done in (1, 2, 3):
        progress.show("receiving", done, 3)
    progress.show("unpacking")
    progress.say("imported x")
    progress.close()
    assert stream.getvalue() == "      receiving\n      unpacking\n"
