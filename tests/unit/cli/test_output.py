from __future__ import annotations

import io
from typing import TYPE_CHECKING

from cri_shim.cli.output import counted, is_screen, paint, printable, short_id, table, wants_colour

if TYPE_CHECKING:
    import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_are_aligned_and_the_last_keeps_its_length() -> None:
    assert table([("A", "LONG NAME", "x"), ("abc", "b", "long text")]) == [
        "A    LONG NAME  x",
        "abc  b          long text",
    ]
    assert table([]) == []


def test_text_from_elsewhere_stays_on_its_line_and_commands_no_terminal() -> None:
    assert printable("a\nb\tc\x1b[31m\n") == "a b c�[31m"


def test_colours_are_for_terminals_whose_user_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(Terminal())
    assert not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(Terminal())


def test_paint_wraps_only_when_enabled() -> None:
    assert paint("x", "red", enabled=False) == "x"
    assert paint("x", "red", enabled=True) == "\x1b[31mx\x1b[0m"


def test_only_a_terminal_that_can_redraw_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_screen(Terminal())
    assert not is_screen(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_screen(Terminal())


def test_ids_are_short_and_things_are_counted_in_words() -> None:
    assert short_id("sha256:0123456789abcdef") == "0123456789ab"
    assert [counted(count, "layer") for count in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
