"""Programs of this package that run as processes of their own, beside the daemon.

Rules: one is a module that takes the number of a socket, and does nothing but what it is told over that. It sees this
package, as the daemon does, and nothing else of the daemon's environment, nor of a working directory. When memory runs
out it is taken before the daemon (`confine.raise_oom_score_adj`), and replaced.
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
    """Start `module`, which gets the descriptor `connection` under the same number. Raises OSError."""
    return reaper.spawn(
        # -P -s: nothing is imported from the working directory or a user's site.
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
