"""Debian's containerd, as it is installed, in directories of its own: what benchmarks compare with."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_READY_S = 30.0
_CONFIG = """\
version = 2
root = "{work}/root"
state = "{work}/state"
{top}
[grpc]
  address = "{socket}"
"""


@contextmanager
def containerd(work: Path, *, config: str = "", top: str = "") -> Iterator[tuple[int, Path]]:
    """Its process ID and socket; ended when this closes.

    `config` is what its configuration has besides, in TOML, behind its first table; `top` before it.

    Raises: RuntimeError with its log when it does not come up.
    """
    work.mkdir(exist_ok=True)
    socket = work / "c.sock"
    config_file = work / "config.toml"
    config_file.write_text(_CONFIG.format(work=work, socket=socket, top=top) + config)
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "containerd", "--config", str(config_file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    # Its root stays until the benchmark ends: see there.
    try:
        deadline = time.monotonic() + _READY_S
        while not _answers(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (work / "log").read_text()[-2000:]
                raise RuntimeError(f"containerd did not come up: {said}")
            time.sleep(0.2)
        yield process.pid, socket
    finally:
        process.terminate()
        process.wait()


def _answers(socket: Path) -> bool:
    done = subprocess.run(
        ["ctr", "--address", str(socket), "--timeout", "2s", "version"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
