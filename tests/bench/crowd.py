"""Many pods asked for at the same moment, and taken away at the same moment: what each costs, beside the floor.

    python -m tests.bench.crowd [--pods 100] [--json]

The floor is the same crowd with nothing but the delegated programs, called at once from as many threads (`floor.py`);
its bundles are prepared before. Prints milliseconds per pod (the whole crowd's time over its size) and their ratio. The
daemon's time includes all that the floor leaves out: records, root file systems, cgroups, calls. Needs what `pod.py`
needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tests.bench.floor import Example, Floor, remove_sandbox, start_sandbox
from tests.bench.pod import beside_floor, examples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.harness.daemon import Daemon

T = TypeVar("T")
R = TypeVar("R")


def at_once(work: Callable[[T], R], items: Sequence[T]) -> tuple[float, list[R]]:
    """Milliseconds per item from the moment at which all begin to the end of the last; and the results."""
    gate = threading.Barrier(len(items) + 1)

    def one(item: T) -> R:
        gate.wait()
        return work(item)

    with ThreadPoolExecutor(len(items)) as threads:
        pending = [threads.submit(one, item) for item in items]
        gate.wait()
        began = time.perf_counter()
        results = [each.result() for each in pending]
        return (time.perf_counter() - began) * 1000 / len(items), results


def crowd(daemon: Daemon, count: int) -> tuple[float, float]:
    """The daemon's crowd: made and removed, in milliseconds per pod."""
    client = daemon.client
    made, pods = at_once(client.run_pod, [client.pod_config() for _ in range(count)])
    addresses = {client.pod_status(pod).status.network.ip for pod in pods}
    if len(addresses) != count:
        raise RuntimeError(f"{count} pods have {len(addresses)} addresses")

    def take_away(pod: str) -> None:
        client.stop_pod(pod)
        client.remove_pod(pod)

    removed, _ = at_once(take_away, pods)
    if client.pods():
        raise RuntimeError(f"{len(client.pods())} pods are left")
    return made, removed


def floor_crowd(floor: Floor, pause: Example, count: int) -> tuple[float, float]:
    """The same crowd without the daemon."""
    prepared = []
    for _ in range(count):
        netns = Path(f"/run/netns/bench-{uuid.uuid4().hex[:16]}")
        prepared.append((floor.bundle(pause, netns=netns, pause_pid=None), netns))
    made, started = at_once(lambda item: start_sandbox(floor, *item), prepared)
    there = [
        (bundle, netns, pid, result)
        for (bundle, netns), (_, pid, result) in zip(prepared, started, strict=True)
    ]
    removed, _ = at_once(lambda item: remove_sandbox(floor, *item), there)
    return made, removed


def main() -> int:
    """Measure and print; 0 always: a table, not a gate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pods", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with beside_floor() as (daemon, floor):
        pause, _ = examples(daemon, floor)
        ours = crowd(daemon, options.pods)
        least = floor_crowd(floor, pause, options.pods)
    rows = [
        {"step": step, "ms": round(ms, 1), "floor_ms": round(low, 1), "ratio": round(ms / low, 2)}
        for step, ms, low in zip(("made", "removed"), ours, least, strict=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'':<10}{'ms per pod':>12}{'floor ms':>10}{'ratio':>7}   ({options.pods} pods at once)")
    for row in rows:
        print(f"{row['step']:<10}{row['ms']:>12}{row['floor_ms']:>10}{row['ratio']:>7}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
