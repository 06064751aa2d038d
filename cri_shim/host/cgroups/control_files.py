"""Reads the numbers in a cgroup's control files, as fast as many cgroups at once need it.

Rules:
- A file that is not there, a cgroup that vanishes meanwhile and a line that is no number are None or missing, never an
  exception: nodes differ in their controllers.
- One open, one read and one close per file: the kernel returns these files whole to a single read(2).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_FILE_BYTES = 1 << 16


def read_file(path: str) -> bytes | None:
    """The beginning of a control file, up to 64 KiB; None if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, MAX_FILE_BYTES)
    except (
        OSError
    ):  # ENODEV: the cgroup was removed after the open; EOPNOTSUPP: pressure that is not accounted
        return None
    finally:
        os.close(fd)


def read_number(path: str) -> int | None:
    """The number in the file; None also for `max`, which v2 shows for no limit."""
    text = (read_file(path) or b"").strip()
    return int(text) if text.isdigit() else None


class Pairs:
    """Reads chosen lines of files with lines of the form `name number`."""

    def __init__(self, names: Iterable[str]) -> None:
        wanted = "|".join(re.escape(name) for name in names)
        self._line = re.compile(rf"^({wanted}) (\d+)$".encode("ascii"), re.MULTILINE)

    def read(self, path: str) -> dict[str, int]:
        """The chosen lines of the file that are there; {} if it is gone."""
        text = read_file(path)
        if text is None:
            return {}
        return {name.decode("ascii"): int(number) for name, number in self._line.findall(text)}
