"""A daemon that logs forbidden actions: scans of all processes or mounts, short polling, late imports.

    python -m tests.harness.audited_daemon serve --config FILE

Each time that it lists /proc, opens a list of mounts, or sleeps for less than `SHORTEST_POLL_S`, a line
`WHAT FUNCTION (MODULE)` goes to `audit.log` beside FILE, with the function of cri_shim that did so; and for each module
that it loads, a line `import NAME FUNCTION (MODULE)`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cri_shim.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORTEST_POLL_S: Final = 0.1
LOG_NAME: Final = "audit.log"
_MOUNT_LISTS = ("/mountinfo", "/mounts", "/mountstats")
_PACKAGE = f"{os.sep}cri_shim{os.sep}"


def what_is_looked_at(event: str, arguments: tuple[object, ...]) -> str | None:
    """The line to log for an audit event (sys.addaudithook), if it is a forbidden action."""
    if event == "import":
        return f"import {arguments[0]}"
    if event not in ("os.listdir", "os.scandir", "open") or not arguments:
        return None
    path = arguments[0]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str | os.PathLike):
        return None
    name = os.fspath(path)
    if not isinstance(name, str) or not name.startswith("/proc"):
        return None
    if event == "open":
        return "mounts" if name.endswith(_MOUNT_LISTS) else None
    return "processes" if name.rstrip("/") == "/proc" else None


def _who() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and _PACKAGE not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name})"


def arm(log_file: Path) -> None:
    """Audit this process from now on. It cannot be undone."""
    fd = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if (what := what_is_looked_at(event, arguments)) is not None:
            os.write(fd, f"{what} {_who()}\n".encode())

    sleep = asyncio.sleep

    async def audited_sleep(delay: float, result: object = None) -> object:
        if 0 < delay < SHORTEST_POLL_S:
            os.write(fd, f"sleep {_who()}\n".encode())
        return await sleep(delay, result)

    asyncio.sleep = audited_sleep  # type: ignore[assignment]
    sys.addaudithook(hook)


def run(arguments: Sequence[str]) -> int:
    """Run `cri-shim` with these arguments, audited."""
    config_file = Path(arguments[list(arguments).index("--config") + 1])
    arm(config_file.parent / LOG_NAME)
    return main(list(arguments))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
