"""Looks up programs. The result is not cached, so that a program installed or replaced meanwhile is found."""

from __future__ import annotations

import os


def find_program(name: str, search_path: str) -> str | None:
    """The absolute path of an executable, or None. A `name` with a slash is a path; others are looked up in
    `search_path`.

    Costs a system call per directory.
    """
    for directory in ("",) if "/" in name else search_path.split(os.pathsep):
        file = f"{directory}/{name}" if directory else name
        if os.access(file, os.X_OK) and os.path.isfile(file):
            return os.path.abspath(file)
    return None
