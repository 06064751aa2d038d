"""Command lines by which what a killed daemon has started is known again: whose container they work for.

Rules: a command counts as this daemon's only by a path below its state directory, which nobody else uses. A monitor is
told by the directory of its exit files; a runtime's `run`, by the bundle and pid file that we tell it.
"""

from __future__ import annotations

import os
from pathlib import Path

_RUN = (b"run", b"--detach", b"--bundle")
_RUN_WORDS = 7


def command_line(pid: int) -> bytes:
    """A process's words, each with a NUL after it; none when it is gone. Blocking."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def find_commands(exits_dir: Path, state_dir: Path) -> dict[int, str]:
    """The container of every monitor and every `run` there is now, by pid. Blocking: a file per process of the node."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            line = command_line(int(name))
            container_id = monitored_by(line, exits_dir) or started_by(line, state_dir)
            if container_id is not None:
                found[int(name)] = container_id
    return found


def run_arguments(container_id: str, *, bundle_dir: Path, pid_file: Path) -> list[str]:
    """What follows the runtime's own options where it is to create and start a container, and to leave it."""
    return [
        *("run", "--detach", "--bundle", str(bundle_dir)),
        *("--pid-file", str(pid_file), container_id),
    ]


def monitored_by(line: bytes, exits_dir: Path) -> str | None:
    """The container of a monitor; None for what is none. `line` is as `command_line` gives it."""
    if b"--exit-dir\0" + os.fsencode(exits_dir) + b"\0" not in line:
        return None
    words = line.removesuffix(b"\0").split(b"\0")
    return os.fsdecode(words[words.index(b"--cid") + 1]) if b"--cid" in words[:-1] else None


def started_by(line: bytes, state_dir: Path) -> str | None:
    """The container that a runtime's `run` works for, or what has forked from it; None for what is none."""
    if os.fsencode(state_dir) not in line:
        return None
    words = line.removesuffix(b"\0").split(b"\0")[-_RUN_WORDS:]
    if len(words) < _RUN_WORDS or tuple(words[: len(_RUN)]) != _RUN:
        return None
    ours = words[len(_RUN)].startswith(os.fsencode(state_dir) + b"/")
    return os.fsdecode(words[-1]) if ours else None
