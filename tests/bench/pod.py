"""What a pod's calls cost, beside the delegated floor measured in the same run.

    python -m tests.bench.pod [--rounds 30] [--idle 0] [--json]

Starts a daemon of its own with a private bridge network, times each call of a pod's life over the socket, and in turn
with each round calls conmon, the OCI runtime and the CNI plugins directly (`floor.py`). Prints medians and their ratio:
the machine's own speed cancels out. Beside them stands the processor time: the daemon's own for each call, and for a
whole life the daemon's and the machine's (all processes, so only on a quiet machine the pod's). With `--idle` other
pods run beside. Needs root and what `tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.host.syscalls import set_child_subreaper
from cri_shim.image.builtin import busybox_archive
from tests.bench.floor import Example, Floor, exec_true, sandbox, stop_sandbox
from tests.harness.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.client import Client

IMAGE = "localhost/bench:1"
BUDGETS = {"RunPodSandbox": 1.3, "ExecSync": 1.25}
"""How many times the floor a call may take."""


LIFE = "a pod's life"


class Times:
    """Seconds by name: by the clock, of the daemon's processor time and of the machine's."""

    def __init__(self, pid: int | None = None) -> None:
        """`pid` is the daemon whose processor time is measured, if any."""
        self.seconds: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.machine: dict[str, list[float]] = {}
        # clock_getcpuclockid(3): the processor time of another process, all its threads.
        self._clock = None if pid is None else (~pid << 3) | 2

    def add(self, name: str, seconds: float) -> None:
        """One more measurement by the clock."""
        self.seconds.setdefault(name, []).append(seconds)

    def call(self, name: str, function: Callable[[], Any]) -> Any:
        """Measure one call."""
        machine, cpu, started = machine_cpu(), self._cpu(), time.perf_counter()
        result = function()
        self.add(name, time.perf_counter() - started)
        self.cpu.setdefault(name, []).append(self._cpu() - cpu)
        self.machine.setdefault(name, []).append(machine_cpu() - machine)
        return result

    def _cpu(self) -> float:
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def median_ms(self, name: str) -> float:
        """In milliseconds, by the clock."""
        return statistics.median(self.seconds[name]) * 1000

    def cpu_ms(self, name: str) -> float:
        """The daemon's processor time, milliseconds."""
        return statistics.median(self.cpu[name]) * 1000

    def machine_ms(self, name: str) -> float:
        """The machine's processor time in the middle, milliseconds: of many, since it is counted in ticks."""
        return statistics.fmean(self.machine[name]) * 1000


def machine_cpu() -> float:
    """Seconds that all processors together were not idle since the boot."""
    user, nice, system, _idle, _iowait, *interrupts = Path("/proc/stat").read_text().split()[1:9]
    busy = sum(map(int, (user, nice, system, *interrupts[:2])))
    return busy / os.sysconf("SC_CLK_TCK")


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
    times.call(LIFE, lambda: _life(daemon, times))


def _life(daemon: Daemon, times: Times) -> None:
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


def idle_pod(client: Client) -> None:
    """One more pod that does nothing."""
    config = client.pod_config()
    client.run(client.run_pod(config), client.container_config(IMAGE, ["sleep", "86400"]), config)


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
    pid = times.call("CreateContainer", lambda: floor.create(bundle))
    times.call("StartContainer", lambda: floor.runc("start", bundle.name))
    for _ in range(3):
        times.add("ExecSync", exec_true(floor, bundle))
    times.call("StopContainer", lambda: floor.kill(bundle.name, pid))
    times.call("RemoveContainer", lambda: delete_and_forget(floor, bundle))
    times.add("StopPodSandbox", stop_sandbox(floor, pod_bundle, netns, pause_pid, result))
    times.call("RemovePodSandbox", lambda: floor.forget(pod_bundle))


def delete_and_forget(floor: Floor, bundle: Path) -> None:
    """What is to be done once a container has ended: the daemon begins with it before RemoveContainer is called."""
    floor.runc("delete", bundle.name)
    floor.forget(bundle)


def report(ours: Times, floor: Times) -> list[dict[str, Any]]:
    """One row per call."""
    rows = []
    for name in ours.seconds:
        row: dict[str, Any] = {
            "call": name,
            "ms": round(ours.median_ms(name), 1),
            "cpu_ms": round(ours.cpu_ms(name), 1),
        }
        if name == LIFE:
            row["machine_cpu_ms"] = round(ours.machine_ms(name))
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
    parser.add_argument("--idle", type=int, default=0, help="pods that run beside, doing nothing")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with beside_floor() as (daemon, floor):
        ours, floor_times = Times(daemon.pid), Times()
        pause, ordinary = examples(daemon)
        for _ in range(options.idle):
            idle_pod(daemon.client)
        for _ in range(options.rounds):
            life(daemon, ours)
            floor_life(floor, pause, ordinary, floor_times)
    rows = report(ours, floor_times)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(
        f"{'call':<18}{'ms':>8}{'floor ms':>10}{'ratio':>7}{'budget':>8}{'cpu ms':>8}   "
        f"(medians of {options.rounds}, {options.idle} pods beside)"
    )
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        print(
            f"{row['call']:<18}{row['ms']:>8}{row.get('floor_ms', ''):>10}{ratio:>7}{row.get('budget') or '':>8}"
            f"{row['cpu_ms']:>8}"
        )
    print(f"the machine's processor time in {LIFE}: {rows[-1]['machine_cpu_ms']} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
