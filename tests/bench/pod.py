"""What a pod's calls cost, beside the delegated floor measured in the same run.

    python -m tests.bench.pod [--rounds 30] [--json]

Starts a daemon of its own with a private bridge network, times each call of a pod's life over the socket, and in turn
with each round calls conmon, the OCI runtime and the CNI plugins directly (`floor.py`). Prints medians and their ratio:
the machine's own speed cancels out. Needs root and what `tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.host.syscalls import set_child_subreaper
from cri_shim.image.builtin import busybox_archive
from tests.bench.floor import Example, Floor, exec_true, remove_sandbox, sandbox
from tests.harness.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMAGE = "localhost/bench:1"
BUDGETS = {"RunPodSandbox": 1.3, "ExecSync": 1.25}
"""How many times the floor a call may take."""


class Times:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """One more measurement."""
        self.seconds.setdefault(name, []).append(seconds)

    def call(self, name: str, function: Callable[[], Any]) -> Any:
        """Measure one call."""
        started = time.perf_counter()
        result = function()
        self.add(name, time.perf_counter() - started)
        return result

    def median_ms(self, name: str) -> float:
        """In milliseconds."""
        return statistics.median(self.seconds[name]) * 1000


@contextmanager
def beside_floor() -> Iterator[tuple[Daemon, Floor]]:
    """A daemon of the benchmark's own that has the image, and the floor on the same network, as long as the block."""
    set_child_subreaper(enabled=True)
    daemon = Daemon("crib", settings={"log": {"level": "info"}})
    with tempfile.TemporaryDirectory(prefix="cri-bench-") as directory:
        work_dir = Path(directory)
        (work_dir / "exits").mkdir()
        archive = work_dir / "image.tar"
        archive.write_bytes(busybox_archive(IMAGE))
        network = json.loads((daemon.conf_dir / "10-net.conflist").read_text())
        floor = Floor(work_dir, network, (Path("/opt/cni/bin"), Path("/usr/lib/cni")))
        try:
            daemon.start()
            daemon.client.import_image(archive)
            yield daemon, floor
        finally:
            # Also after a failure: outside the tests' own namespaces nothing else takes the pods' networks away.
            if daemon.pid is not None:
                daemon.client.remove_all_pods()
                daemon.stop()
            daemon.destroy()


def life(daemon: Daemon, times: Times) -> None:
    """One pod of one container, from RunPodSandbox to RemovePodSandbox."""
    client = daemon.client
    config = client.pod_config()
    pod = times.call("RunPodSandbox", lambda: client.run_pod(config))
    wanted = client.container_config(IMAGE, ["sleep", "600"])
    container = times.call("CreateContainer", lambda: client.create(pod, wanted, config))
    times.call("StartContainer", lambda: client.start(container))
    for _ in range(3):
        times.call("ExecSync", lambda: client.exec(container, "true"))
    times.call("StopContainer", lambda: client.stop(container))
    times.call("RemoveContainer", lambda: client.remove(container))
    times.call("StopPodSandbox", lambda: client.stop_pod(pod))
    times.call("RemovePodSandbox", lambda: client.remove_pod(pod))


def examples(daemon: Daemon) -> tuple[Example, Example]:
    """A pause container and an ordinary one as the daemon makes them."""
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(IMAGE, ["sleep", "600"]), config)
    found = []
    for kind, object_id in (("sandboxes", pod), ("containers", container)):
        record = json.loads((daemon.root / kind / object_id / "record.json").read_text())
        spec = json.loads((daemon.state / kind / object_id / "config.json").read_text())
        found.append(Example(spec, daemon.root / "layers", tuple(record["layers"])))
    client.remove_all_pods()
    return found[0], found[1]


def floor_life(floor: Floor, pause: Example, ordinary: Example, times: Times) -> None:
    """The same life with nothing but the delegated programs."""
    seconds, pod_bundle, netns, pause_pid, result = sandbox(floor, pause)
    times.add("RunPodSandbox", seconds)
    bundle = floor.bundle(ordinary, netns=netns, pause_pid=pause_pid)
    times.call("CreateContainer", lambda: floor.create(bundle))
    times.call("StartContainer", lambda: floor.runc("start", bundle.name))
    for _ in range(3):
        times.add("ExecSync", exec_true(floor, bundle))
    floor.remove(bundle)
    times.add("StopPodSandbox", remove_sandbox(floor, pod_bundle, netns, pause_pid, result))


def report(ours: Times, floor: Times) -> list[dict[str, Any]]:
    """One row per call."""
    rows = []
    for name in ours.seconds:
        row: dict[str, Any] = {"call": name, "ms": round(ours.median_ms(name), 1)}
        if name in floor.seconds:
            row["floor_ms"] = round(floor.median_ms(name), 1)
            row["ratio"] = round(ours.median_ms(name) / floor.median_ms(name), 2)
            row["budget"] = BUDGETS.get(name)
        rows.append(row)
    return rows


def main() -> int:
    """Measure and print; 0 always: a table, not a gate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ours, floor_times = Times(), Times()
    with beside_floor() as (daemon, floor):
        pause, ordinary = examples(daemon)
        for _ in range(options.rounds):
            life(daemon, ours)
            floor_life(floor, pause, ordinary, floor_times)
    rows = report(ours, floor_times)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(
        f"{'call':<18}{'ms':>8}{'floor ms':>10}{'ratio':>7}{'budget':>8}   (medians of {options.rounds})"
    )
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        print(
            f"{row['call']:<18}{row['ms']:>8}{row.get('floor_ms', ''):>10}{ratio:>7}{row.get('budget') or '':>8}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
