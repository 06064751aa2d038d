"""Where a program is: looked up each time it is started, so that one installed or replaced meanwhile is found."""

from __future__ import annotations

import os


def find_program(name: str, search_path: str) -> str | None:
    """The absolute path of an executable: of this very one if `name` has a slash, else the first in `search_path`.

    A call of the kernel for each directory. None when there is none.
    """
    for directory in ("",) if "/" in name else search_path.split(os.pathsep):
        file = f"{directory}/{name}" if directory else name
        if os.access(file, os.X_OK) and os.path.isfile(file):
            return os.path.abspath(file)
    return None
