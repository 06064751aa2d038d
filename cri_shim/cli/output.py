"""What commands print: aligned tables, colours on a terminal only, JSON for scripts."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORT_ID_CHARS = 12
COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose user has not asked for none (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, *, enabled: bool) -> str:
    """`text` in a colour of `COLOURS`, or as it is."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if enabled else text


def printable(text: str) -> str:
    """Text from elsewhere on one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text).strip()


def short_id(digest: str) -> str:
    """The beginning of an ID or digest, enough for a person to tell it from others."""
    return printable(digest.removeprefix("sha256:")[:SHORT_ID_CHARS])


def counted(count: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def is_screen(stream: TextIO) -> bool:
    """Whether lines on `stream` can be drawn again: a terminal, and not a dumb one."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns; the last column keeps its length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, [*widths[:-1], 0], strict=True)
        ).rstrip()
        for row in rows
    ]


def json_text(document: object) -> str:
    """A document for scripts, readable for people too."""
    return json.dumps(document, indent=2, ensure_ascii=False)
