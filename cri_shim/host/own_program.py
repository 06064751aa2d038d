"""Starts modules of this package as helper processes of the daemon.

Rules:
- A helper gets the number of a socket as its argument, and only serves requests from that socket.
- Its environment is built anew, and it imports nothing from the working directory or a user's site-packages.
- It raises its oom_score_adj (`confine.raise_oom_score_adj`), so that the OOM killer prefers it to the daemon, which
  replaces it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cri_shim

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.host.process import Child, Reaper


def spawn_own_program(
    reaper: Reaper, module: str, connection: int, *, stderr: int, env: Mapping[str, str]
) -> Child:
    """Start `module`, which inherits the descriptor `connection` with the same number. Raises OSError."""
    return reaper.spawn(
        # -P and -s: no imports from the working directory or a user's site-packages.
        [sys.executable, "-P", "-s", "-m", module, str(connection)],
        stderr=stderr,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(Path(cri_shim.__file__).parent.parent),
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "LC_ALL": "C",
            "MALLOC_ARENA_MAX": "2",
            **env,
        },
        cwd="/",
        pass_fds=(connection,),
    )
