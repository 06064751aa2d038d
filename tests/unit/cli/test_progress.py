from __future__ import annotations

import io

import pytest

from cri_shim.cli.progress import Progress, bar_line, plain_line, size_text


class Stream(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_sees_one_bar_that_is_redrawn_and_ended_by_the_result() -> None:
    stream, clock = Stream(is_terminal=True), Clock()
    progress = Progress(stream, clock=clock)
    progress.show("receiving", 1, 2)
    progress.show("receiving", 2, 2)
    progress.say("done")
    text = stream.getvalue()
    assert text.count("\n") == 2
    assert text.endswith("\ndone\n")
    first, second = text.split("\r\x1b[K")[1:]
    assert "50%" in first
    assert "100%" in second


def test_a_bar_is_not_redrawn_faster_than_an_eye_can_follow() -> None:
    stream, clock = Stream(is_terminal=True), Clock()
    progress = Progress(stream, clock=clock)
    for done in range(1000):
        progress.show("receiving", done, 1_000_000)
        clock.now += 0.001
    assert stream.getvalue().count("\r") < 15


def test_elsewhere_a_line_begins_each_step_and_a_long_one_is_heard_of_again() -> None:
    stream, clock = Stream(is_terminal=False), Clock()
    progress = Progress(stream, clock=clock)
    progress.show("receiving", 1, 100)
    progress.show("receiving", 2, 100)
    clock.now += 6
    progress.show("receiving", 50, 100)
    progress.show("receiving", 100, 100)
    progress.show("unpacking")
    progress.close()
    assert stream.getvalue() == "receiving: 1%\nreceiving: 50%\nunpacking\n"


def test_many_short_steps_share_one_bar_that_goes_with_the_last() -> None:
    stream, clock = Stream(is_terminal=True), Clock()
    progress = Progress(stream, keeps_steps=False, clock=clock)
    for number in range(1000):
        progress.show(f"layer {number}", 1, 1)
        clock.now += 0.001
    progress.say("done")
    text = stream.getvalue()
    assert text.count("\r") < 15
    assert text.endswith("\r\x1b[Kdone\n")
    assert text.count("\n") == 1


def test_elsewhere_many_short_steps_are_a_line_now_and_then() -> None:
    stream, clock = Stream(is_terminal=False), Clock()
    progress = Progress(stream, keeps_steps=False, clock=clock)
    for number in range(11):
        progress.show(f"layer {number}", 1, 2)
        clock.now += 1
    progress.close()
    assert stream.getvalue() == "layer 0: 50%\nlayer 5: 50%\nlayer 10: 50%\n"


def test_no_control_character_reaches_the_terminal() -> None:
    for is_terminal in (False, True):
        stream = Stream(is_terminal=is_terminal)
        progress = Progress(stream)
        progress.show("evil\x1b]0;title\x07 step")
        progress.say("evil\x1b[2J")
        text = stream.getvalue().replace("\r\x1b[K", "")
        assert "\x1b" not in text
        assert "\x07" not in text


@pytest.mark.parametrize(
    ("done", "total", "line"),
    [
        (0, 0, "s"),
        (2048, 0, "s  (2.0 KiB)"),
        (5, 10, "[############------------]  50%  s  (5 B of 10 B)"),
        (20, 10, "[########################] 100%  s  (20 B of 10 B)"),
    ],
)
def test_a_bar_shows_share_and_amount(done: int, total: int, line: str) -> None:
    assert bar_line("s", done, total) == line


def test_a_plain_line_shows_what_is_known() -> None:
    assert plain_line("s", 5, 10) == "s: 50%"
    assert plain_line("s", 5, 0) == "s: 5 B"
    assert plain_line("s", 0, 10) == "s"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 41, "2.0 TiB"),
    ],
)
def test_sizes_are_told_in_binary_units(count: int, text: str) -> None:
    assert size_text(count) == text
