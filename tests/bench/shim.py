"""What a pod costs under containerd's shim: driven by the daemon, driven by containerd, and under conmon instead.

    python -m tests.bench.shim --shim FILE [--rounds 20] [--pods 10] [--beside NAME=SOCKET ...] [--json]

Pods live by turns, as in `tests.bench.pod`: the daemon's under the shim FILE and under conmon, and those of the servers
that are named, which use the shim that they are configured with. Then each has so many idle pods more, and their
memory is added up (PSS): by how much the server and its children grow, and what the processes take that name a pod or
its container on their command lines (shims, conmon). The containers' own processes are not counted. Needs root and what
`tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import footprint, servers
from tests.bench.pod import LIFE, Times, beside_floor, life, ours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.servers import Server

HANDLER = "shim"
CALLS = ("RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "StopPodSandbox", LIFE)


@dataclass(frozen=True)
class Memory:
    """MiB for each idle pod."""

    server: float
    """By how much the server and its children have grown."""
    helpers: float
    """What stands for the pod on the node, its container's own processes aside."""


def memory_of(server: Server, pods: int) -> Memory:
    """Of so many more idle pods, which are removed afterwards."""
    before = _pss_mib(footprint.family(server.pid))
    known = {each.id for each in server.client.pods()}
    for _ in range(pods):
        server.idle_pod()
    ids = {each.id for each in server.client.pods()} - known
    ids |= {each.id for each in server.client.containers() if each.pod_sandbox_id in ids}
    helpers = _naming(ids)
    grown = _pss_mib(set(footprint.family(server.pid)) - helpers) - before
    found = Memory(grown / pods, _pss_mib(helpers) / pods)
    server.remove_pods()
    return found


def _naming(ids: set[str]) -> set[int]:
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                command = Path(entry.path, "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if any(each in command for each in ids):
                found.add(int(entry.name))
    return found


def _pss_mib(pids: Sequence[int] | set[int]) -> float:
    return sum(map(footprint.pss_mib, pids))


def row(server: Server, times: Times, memory: Memory) -> dict[str, Any]:
    """For JSON, and the table."""
    return {
        "server": server.name,
        **{f"{name}, ms": round(times.median_ms(name), 1) for name in CALLS},
        "of the machine's processor time, ms": round(times.machine_ms(LIFE)),
        "more memory of the server, MiB": round(memory.server, 2),
        "memory of the helpers, MiB": round(memory.helpers, 2),
    }


def main() -> int:
    """Measure and print; 0 always: a table, not a gate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shim", required=True, help="containerd-shim-runc-v2, or another")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pods", type=int, default=10, help="idle ones, for their memory")
    options = servers.parse_options(parser)
    handlers = {HANDLER: {"path": options.shim, "kind": "shim"}}
    with (
        beside_floor() as (daemon, floor),
        daemon.changed_settings({"runtime": {"handlers": handlers}}),
        servers.beside(options.beside, floor.work_dir) as others,
    ):
        daemon.restart()
        by_conmon = replace(ours(daemon), name="cri-shim, conmon")
        by_shim = replace(by_conmon, name="cri-shim, shim", handler=HANDLER)
        measured = [(each, Times(each)) for each in (by_shim, by_conmon, *others)]
        for _ in range(options.rounds):
            for server, times in measured:
                life(server, times)
        rows = [row(server, times, memory_of(server, options.pods)) for server, times in measured]
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for name in rows[0]:
            print(f"{name:<40}" + "".join(f"{each[name]:>18}" for each in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
