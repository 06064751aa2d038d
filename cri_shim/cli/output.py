"""Formats the output of commands: aligned tables, colours on terminals, JSON."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORT_ID_CHARS = 12
COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}


def wants_colour(stream: TextIO) -> bool:
    """Whether to use colours: `stream` is a terminal, and NO_COLOR is not set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, *, enabled: bool) -> str:
    """`text` in a colour of `COLOURS` if `enabled`."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if enabled else text


def printable(text: str) -> str:
    """Untrusted text on one line, without terminal control sequences."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text).strip()


def short_id(digest: str) -> str:
    """The first characters of an ID or digest, which a person can tell apart."""
    return printable(digest.removeprefix("sha256:")[:SHORT_ID_CHARS])


def counted(count: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def is_screen(stream: TextIO) -> bool:
    """Whether lines on `stream` can be redrawn: it is a terminal, and not a dumb one."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns. The last column is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, [*widths[:-1], 0], strict=True)
        ).rstrip()
        for row in rows
    ]


def json_text(document: object) -> str:
    """A document as indented JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False)
