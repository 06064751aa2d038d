"""Objects on disk by the hundred, without having made them: copies of the records of one real pod's containers.

For what is about numbers: how long a start takes, whether a thousand ends are told exactly. A copy has an ID and an
attempt of its own and names a process and a monitor that are gone; it has no mounts and no cgroup. Whatever else a
record says is as the running code wrote it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.harness.daemon import Daemon

FIRST_ATTEMPT = 1000
GONE = {"pid": 4_194_303, "start_ticks": 1}
"""No process has ever had both."""


def copy_container(
    daemon: Daemon, container: str, number: int, *, state: bool = True, **status: object
) -> str:
    """One more container like `container` in its pod, while no daemon runs; its ID. `status` replaces what its says."""
    source = daemon.root / "containers" / container
    made = secrets.token_hex(32)
    directory = source.with_name(made)
    directory.mkdir(mode=0o700)
    record = _read(source / "record.json")
    record["id"] = made
    record["metadata"]["attempt"] = FIRST_ATTEMPT + number
    record["config"]["metadata"]["attempt"] = FIRST_ATTEMPT + number
    was = _read(source / "status.json")
    gone = {"process": GONE, "monitor": GONE}
    (directory / "status.json").write_text(json.dumps({**was, **gone, **status}))
    (directory / "record.json").write_text(json.dumps(record))
    if state:
        (daemon.state / "containers" / made / "exec").mkdir(mode=0o700, parents=True)
    return made


def leave_exit_file(daemon: Daemon, container: str, code: int, at_ns: int) -> None:
    """What a monitor does when its container has ended."""
    file = daemon.state / "exits" / container
    unfinished = file.with_name(f"{container}.unfinished")
    unfinished.write_text(str(code))
    os.utime(unfinished, ns=(at_ns, at_ns))
    unfinished.rename(file)


def remove_copies(daemon: Daemon, containers: Iterable[str]) -> None:
    """Take away all there is of them, while no daemon runs."""
    for container in containers:
        for directory in (daemon.root / "containers", daemon.state / "containers"):
            shutil.rmtree(directory / container, ignore_errors=True)
        (daemon.state / "exits" / container).unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_bytes())
    return document
