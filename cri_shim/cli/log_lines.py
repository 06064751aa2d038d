"""Parses a container's log file in CRI's format. Pure.

A line is `TIME STREAM TAGS CONTENT`: an RFC 3339 time with nanoseconds, `stdout` or `stderr`, and tags separated by
`:`. The first tag is `F` for a full line, `P` for a part that the next entry continues.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cri_shim.errors import CorruptStateError

_LINE = re.compile(
    rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}(?:Z|[+-]\d\d:\d\d) (stdout|stderr) (F|P)(?::\S*)? (.*)",
    re.DOTALL,
)


class Written(NamedTuple):
    """A line that the container wrote, without its newline."""

    stream: str
    text: str


def parse_log(data: bytes) -> list[Written]:
    """The full lines in `data`, in the file's order. An incomplete line at the end is left out.

    Raises CorruptStateError with the number of a malformed line.
    """
    lines: list[Written] = []
    begun: dict[bytes, bytes] = {}
    entries = data.split(b"\n")
    for number, entry in enumerate(entries[:-1], start=1):
        match = _LINE.fullmatch(entry)
        if match is None:
            shown = entry[:80].decode(errors="replace")
            raise CorruptStateError(
                f"line {number} of the log does not have CRI's format `TIME STREAM F|P CONTENT`: {shown!r}"
            )
        stream, tag, content = match.groups()
        content = begun.pop(stream, b"") + content
        if tag == b"P":
            begun[stream] = content
        else:
            lines.append(Written(stream.decode(), content.decode(errors="replace")))
    return lines
