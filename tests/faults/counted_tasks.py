"""A daemon that says every second how many asyncio tasks it has.

python -m tests.faults.counted_tasks FILE serve --config FILE
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim import event_loop
from cri_shim.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from tests.harness.daemon import Daemon

INTERVAL_S = 1.0


class CountedTasks:
    """The test's side: from its next start on, `daemon` counts its tasks."""

    def __init__(self, daemon: Daemon, file: Path) -> None:
        self._daemon = daemon
        self._file = file
        self._plain = daemon.command_line()
        daemon.command_line = self._command_line  # type: ignore[method-assign]

    def count(self) -> int:
        """How many it had a moment ago."""
        return int(self._file.read_text() or 0) if self._file.exists() else 0

    def end(self) -> None:
        """From its next start on, the daemon is an ordinary one."""
        del self._daemon.command_line

    def _command_line(self, failpoint: str = "") -> list[str]:
        serve = self._plain[self._plain.index("serve") :]
        return [sys.executable, "-m", "tests.faults.counted_tasks", str(self._file), *serve]


def run(arguments: Sequence[str]) -> int:
    """Be `cri-shim` with what follows the first argument."""
    file, *rest = arguments
    run_loop = event_loop.run
    loops: list[asyncio.AbstractEventLoop] = []

    def counted(work: Coroutine[Any, Any, Any]) -> Any:
        async def noted() -> Any:
            loops.append(asyncio.get_running_loop())
            return await work

        return run_loop(noted())

    event_loop.run = counted  # type: ignore[assignment]
    threading.Thread(target=tell, args=(loops, Path(file)), daemon=True).start()
    return main(rest)


def tell(loops: Sequence[asyncio.AbstractEventLoop], file: Path) -> None:
    """Write how many tasks all loops have to `file`, again and again."""
    while True:
        file.write_text(str(sum(len(asyncio.all_tasks(loop)) for loop in loops)))
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
