"""What a pod's calls cost, beside the delegated floor measured in the same run.

    python -m tests.bench.pod [--rounds 30] [--idle 0] [--beside NAME=SOCKET ...] [--json]

Starts a daemon of its own with a private bridge network, times each call of a pod's life over the socket, and in turn
with each round calls conmon, the OCI runtime and the CNI plugins directly (`floor.py`). Prints medians and their ratio:
the machine's own speed cancels out. The floor has no call of gRPC's in it: `to both` is the ratio to the floor and a
call that does nothing (`Version`). Beside them stands the processor time: the daemon's own for each call, and the
machine's, of all processes, for most calls, their floors and a whole life (only on a quiet machine the pod's). With
`--idle` other pods run beside, and other servers that are named (`servers.py`) live the same lives by turns. Needs root
and what `tests/run.sh` installs.
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

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host.syscalls import set_child_subreaper
from tests.bench import servers
from tests.bench.floor import Example, Floor, exec_true, sandbox, stop_sandbox
from tests.bench.servers import IMAGE, OURS, Server, machine_cpu_s
from tests.harness.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

BUDGETS = {"RunPodSandbox": 1.3, "ExecSync": 1.25}
"""How many times the floor a call may take."""


LIFE = "a pod's life"
EMPTY = "Version"
"""The call that does nothing: what any gRPC server and client on this machine add to the floor of each other call."""
BETWEEN_CALLS_S = 0.01


class Times:
    """Seconds by name: by the clock, of the daemon's processor time and of the machine's."""

    def __init__(self, server: Server | None = None) -> None:
        """`server` is whose processor time is measured, if anybody's."""
        self.seconds: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.machine: dict[str, list[float]] = {}
        self._server = server

    def add(self, name: str, seconds: float) -> None:
        """One more measurement by the clock."""
        self.seconds.setdefault(name, []).append(seconds)

    def call(self, name: str, function: Callable[[], Any]) -> Any:
        """Measure one call."""
        machine, cpu, started = machine_cpu_s(), self._cpu(), time.perf_counter()
        result = function()
        self.add(name, time.perf_counter() - started)
        self.cpu.setdefault(name, []).append(self._cpu() - cpu)
        self.machine.setdefault(name, []).append(machine_cpu_s() - machine)
        return result

    def timed(self, name: str, function: Callable[[], float]) -> None:
        """Measure one call that prepares and takes away outside of the seconds which it returns."""
        machine = machine_cpu_s()
        self.add(name, function())
        self.machine.setdefault(name, []).append(machine_cpu_s() - machine)

    def _cpu(self) -> float:
        return 0.0 if self._server is None else self._server.process_cpu_s()

    def median_ms(self, name: str) -> float:
        """In milliseconds, by the clock."""
        return statistics.median(self.seconds[name]) * 1000

    def cpu_ms(self, name: str) -> float:
        """The daemon's processor time, milliseconds."""
        return statistics.median(self.cpu[name]) * 1000

    def machine_ms(self, name: str) -> float:
        """The machine's processor time in the middle, milliseconds: of many, since it is counted in ticks."""
        return statistics.fmean(self.machine[name]) * 1000


@contextmanager
def beside_floor() -> Iterator[tuple[Daemon, Floor]]:
    """A daemon of the benchmark's own that has the image, and the floor on the same network, as long as the block."""
    set_child_subreaper(enabled=True)
    daemon = Daemon(f"crib{os.getpid()}", settings={"log": {"level": "info"}})
    with tempfile.TemporaryDirectory(prefix="cri-bench-") as directory:
        work_dir = Path(directory)
        (work_dir / "exits").mkdir()
        archive = work_dir / "image.tar"
        servers.write_image(archive)
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


def ours(daemon: Daemon) -> Server:
    """The daemon as one of the servers that are measured."""
    assert daemon.pid is not None
    return Server(OURS, daemon.client, daemon.pid, daemon.socket)


def empty_calls(server: Server, times: Times) -> None:
    """Three calls that do nothing, each some milliseconds after the one before, as the calls of a life are.

    The first after a long sleep takes several times that, and none of a life's is it.
    """
    server.client.runtime.Version(api.VersionRequest())
    for _ in range(3):
        time.sleep(BETWEEN_CALLS_S)
        times.call(EMPTY, lambda: server.client.runtime.Version(api.VersionRequest()))


def life(server: Server, times: Times, *, execs: int = 3) -> None:
    """One pod of one container, from RunPodSandbox to RemovePodSandbox."""
    times.call(LIFE, lambda: _life(server, times, execs))


def _life(server: Server, times: Times, execs: int) -> None:
    client = server.client
    config = server.pod_config()
    pod = times.call("RunPodSandbox", lambda: server.run_pod(config))
    wanted = client.container_config(IMAGE, ["sleep", "600"])
    container = times.call("CreateContainer", lambda: client.create(pod, wanted, config))
    times.call("StartContainer", lambda: client.start(container))
    for _ in range(execs):
        times.call("ExecSync", lambda: client.exec(container, "true"))
    times.call("StopContainer", lambda: client.stop(container))
    times.call("RemoveContainer", lambda: client.remove(container))
    times.call("StopPodSandbox", lambda: client.stop_pod(pod))
    times.call("RemovePodSandbox", lambda: client.remove_pod(pod))


def examples(daemon: Daemon, floor: Floor) -> tuple[Example, Example]:
    """A pause container and an ordinary one as the daemon makes them."""
    client = daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(IMAGE, ["sleep", "600"]), config)
    found = []
    for kind, object_id in (("sandboxes", pod), ("containers", container)):
        record = json.loads((daemon.root / kind / object_id / "record.json").read_text())
        spec = json.loads((daemon.state / kind / object_id / "config.json").read_text())
        found.append(floor.example(spec, daemon.root / "layers", record["layers"]))
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
        times.timed("ExecSync", lambda: exec_true(floor, bundle))
    times.call("StopContainer", lambda: floor.kill(bundle.name, pid))
    times.call("RemoveContainer", lambda: delete_and_forget(floor, bundle))
    times.add("StopPodSandbox", stop_sandbox(floor, pod_bundle, netns, pause_pid, result))
    times.call("RemovePodSandbox", lambda: floor.forget(pod_bundle))


def delete_and_forget(floor: Floor, bundle: Path) -> None:
    """What is to be done once a container has ended: the daemon begins with it before RemoveContainer is called."""
    floor.runc("delete", bundle.name)
    floor.forget(bundle)


def report(own: Times, floor: Times, others: Mapping[str, Times]) -> list[dict[str, Any]]:
    """One row per call."""
    rows = []
    for name in own.seconds:
        row: dict[str, Any] = {"call": name, **figures(own, name)}
        if name in floor.seconds:
            row["floor_ms"] = round(floor.median_ms(name), 1)
            row["ratio"] = round(own.median_ms(name) / floor.median_ms(name), 2)
            row["ratio_with_call"] = round(
                own.median_ms(name) / (floor.median_ms(name) + own.median_ms(EMPTY)), 2
            )
            row["budget"] = BUDGETS.get(name)
        if name in floor.machine:
            row["machine_ms"] = round(own.machine_ms(name), 1)
            row["floor_machine_ms"] = round(floor.machine_ms(name), 1)
        row["beside"] = {other: figures(times, name) for other, times in others.items()}
        rows.append(row)
    return rows


def figures(times: Times, name: str) -> dict[str, float]:
    """What one server took for one call."""
    found = {"ms": round(times.median_ms(name), 1), "cpu_ms": round(times.cpu_ms(name), 1)}
    if name == LIFE:
        found["machine_cpu_ms"] = round(times.machine_ms(name))
    return found


def print_table(rows: list[dict[str, Any]], heading: str) -> None:
    """For a person."""
    others = list(rows[0]["beside"])
    print(
        f"{'call':<18}{'ms':>8}{'floor ms':>10}{'ratio':>7}{'to both':>9}{'budget':>8}{'cpu ms':>8}"
        f"{'machine':>9}{'floor':>7}"
        + "".join(f"{f'{name} ms':>16}{'cpu ms':>8}" for name in others)
        + f"   ({heading})"
    )
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        print(
            f"{row['call']:<18}{row['ms']:>8}{row.get('floor_ms', ''):>10}{ratio:>7}"
            f"{row.get('ratio_with_call', ''):>9}{row.get('budget') or '':>8}"
            f"{row['cpu_ms']:>8}{row.get('machine_ms', ''):>9}{row.get('floor_machine_ms', ''):>7}"
            + "".join(f"{each['ms']:>16}{each['cpu_ms']:>8}" for each in row["beside"].values())
        )
    whole = rows[-1]
    spent = {OURS: whole["machine_cpu_ms"]}
    spent.update({name: each["machine_cpu_ms"] for name, each in whole["beside"].items()})
    print(
        f"the machine's processor time in {LIFE}: "
        + ", ".join(f"{name} {ms} ms" for name, ms in spent.items())
    )


def main() -> int:
    """Measure and print; 0 always: a table, not a gate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--idle", type=int, default=0, help="pods that run beside, doing nothing")
    options = servers.parse_options(parser)
    with (
        beside_floor() as (daemon, floor),
        servers.beside(options.beside, floor.work_dir) as others,
    ):
        all_servers = [ours(daemon), *others]
        times = {server.name: Times(server) for server in all_servers}
        floor_times = Times()
        pause, ordinary = examples(daemon, floor)
        for server in all_servers:
            for _ in range(options.idle):
                server.idle_pod()
        for _ in range(options.rounds):
            for server in all_servers:
                empty_calls(server, times[server.name])
                life(server, times[server.name])
            floor_life(floor, pause, ordinary, floor_times)
    rows = report(times.pop(OURS), floor_times, times)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows, f"medians of {options.rounds}, {options.idle} pods beside")
    return 0


if __name__ == "__main__":
    sys.exit(main())
