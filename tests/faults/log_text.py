"""Much text in many short lines for a container to write, and what its log makes of it, put together again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LINE_BYTES = (20, 200)


def write_text(file: Path, size: int, seed: int) -> None:
    """A file of at least `size` bytes: numbered lines of `LINE_BYTES` bytes; in any other order it is another text."""
    lengths = random.Random(seed)
    padding = "x" * LINE_BYTES[1]
    lines: list[str] = []
    written = 0
    while written < size:
        length = int(LINE_BYTES[0] + lengths.random() * (LINE_BYTES[1] - LINE_BYTES[0]))
        lines.append(f"{len(lines):010d} {padding[: length - 12]}\n")
        written += length
    file.write_text("".join(lines))


def joined(files: Iterable[Path], stream: str) -> bytes:
    """What went to `stream`, from the log files in the order they were written: parts joined, full lines ended.

    A last line whose own end is not there was cut short in the middle of a write: of it comes what it has.
    """
    pieces = []
    wanted = stream.encode()
    for file in files:
        *lines, cut_short = file.read_bytes().split(b"\n")
        for line in lines:
            _, name, tag, text = line.split(b" ", 3)
            if name == wanted:
                pieces.append(text)
                if tag == b"F":
                    pieces.append(b"\n")
        match cut_short.split(b" ", 3):
            case [_, name, _, text] if name == wanted:
                pieces.append(text)
    return b"".join(pieces)
