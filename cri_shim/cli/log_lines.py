"""A container's log file in the form that CRI prescribes, read back as what the container wrote (pure).

A line of the file is `TIME STREAM TAGS CONTENT`: RFC 3339 with nanoseconds, `stdout` or `stderr`, tags parted by `:`
of which the first is `F` for a whole line and `P` for the beginning of one that goes on in the next entry.
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
    """The whole lines in `data`, in the file's order; what is not complete yet is left out.

    Raises CorruptStateError naming the line that has another form.
    """
    lines: list[Written] = []
    begun: dict[bytes, bytes] = {}
    entries = data.split(b"\n")
    for number, entry in enumerate(entries[:-1], start=1):
        match = _LINE.fullmatch(entry)
        if match is None:
            shown = entry[:80].decode(errors="replace")
            raise CorruptStateError(
                f"line {number} is not `TIME STREAM F|P CONTENT` as CRI prescribes: {shown!r}"
            )
        stream, tag, content = match.groups()
        content = begun.pop(stream, b"") + content
        if tag == b"P":
            begun[stream] = content
        else:
            lines.append(Written(stream.decode(), content.decode(errors="replace")))
    return lines
