"""What a further pod, execs, lists and a steady minute cost on a node that is full already.

    python -m tests.bench.density [--pods 10,100,250] [--beside NAME=SOCKET ...] [--rounds 10] [--clients 4]
        [--seconds 60] [--json]

For each number of idle pods: lives of one more pod, ExecSync in idle containers, ListPodSandbox with ListContainers;
lives of further pods by `--clients` clients at once, without execs; then a steady time of what a kubelet asks all day:
both lists every second, the statistics of all containers every 10 s, and 10 exec probes a second, each in another
container. The daemon of its own and the servers that are named (`servers.py`) take turns. Processor time: `cpu` is the
server's own process; `with helpers` adds the processes that belong to it, and what those started and waited for;
`machine` is that of all processes, the server's only on a quiet machine.

Nothing here judges: a table, not a gate. Needs root and what `tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.bench import servers
from tests.bench.latency import Latency
from tests.bench.pod import LIFE, Times, beside_floor, life, ours
from tests.bench.servers import Server, machine_cpu_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXECS_A_ROUND = 5
LISTS_A_ROUND = 10
RELIST_S = 1.0
STATS_S = 10.0
PROBE_S = 0.1
PROBES_AT_ONCE = 8
"""A probe that takes longer than its turn does not hold up the next ones."""
LISTS = "both lists"
EXEC = "ExecSync, idle container"


@dataclass
class Loaded:
    """A server with the idle containers that it has so far, and what was measured with as many."""

    server: Server
    containers: list[str] = field(default_factory=list)
    times: Times = field(default_factory=Times)
    crowd: dict[str, float] = field(default_factory=dict)
    steady: dict[str, float] = field(default_factory=dict)

    def fill(self, pods: int) -> None:
        """Have that many idle pods, and forget what was measured with fewer."""
        while len(self.containers) < pods:
            self.containers.append(self.server.idle_pod())
        self.times = Times(self.server)
        self.steady = {}

    def lists(self) -> None:
        """What a kubelet's relist asks."""
        self.server.client.pods()
        self.server.client.containers()

    def round(self, number: int) -> None:
        """One life of a further pod, some execs and some lists."""
        life(self.server, self.times)
        for each in range(EXECS_A_ROUND):
            container = self.containers[(number * EXECS_A_ROUND + each) % len(self.containers)]
            self.times.call(EXEC, partial(self.server.client.exec, container, "true"))
        for _ in range(LISTS_A_ROUND):
            self.times.call(LISTS, self.lists)

    def at_once(self, clients: int, lives: int) -> None:
        """So many clients at once, each with so many lives one after the other."""

        def one_client() -> None:
            for _ in range(lives):
                # Nothing is measured of a single one: the processor time is everybody's.
                life(self.server, Times(), execs=0)

        machine, own = machine_cpu_s(), self.server.process_cpu_s()
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            for each in [pool.submit(one_client) for _ in range(clients)]:
                each.result()
        seconds, count = time.perf_counter() - started, clients * lives
        self.crowd = {
            "pods_per_s": round(count / seconds, 2),
            "cpu_ms": round((self.server.process_cpu_s() - own) / count * 1000, 1),
            "machine_cpu_ms": round((machine_cpu_s() - machine) / count * 1000),
        }

    def steady_time(self, seconds: float) -> None:
        """What a kubelet asks of a node on which nothing happens, for that long."""
        client = self.server.client
        probed = itertools.cycle(self.containers)
        request = api.ListContainerStatsRequest()
        with ThreadPoolExecutor(PROBES_AT_ONCE) as probes:
            relists = Beat(RELIST_S, self.lists)
            stats = Beat(STATS_S, lambda: client.runtime.ListContainerStats(request, timeout=60.0))
            execs = Beat(PROBE_S, lambda: client.exec(next(probed), "true"), probes)
            machine, own = machine_cpu_s(), self.server.process_cpu_s()
            helped = self.server.with_helpers_cpu_s()
            keep_time((relists, stats, execs), seconds)
        self.steady = {
            "with_helpers_cpu_s": round(self.server.with_helpers_cpu_s() - helped, 2),
            "cpu_s": round(self.server.process_cpu_s() - own, 2),
            "machine_cpu_s": round(machine_cpu_s() - machine, 2),
            "lists_p99_ms": round(Latency.of(relists.seconds).p99_ms, 2),
            "exec_p99_ms": round(Latency.of(execs.seconds).p99_ms, 1),
            "exec_ms": round(Latency.of(execs.seconds).median_ms, 1),
            "probes": len(execs.seconds),
        }

    def report(self, pods: int) -> dict[str, Any]:
        """All of it, by name."""
        times = self.times
        return {
            "pods": pods,
            "server": self.server.name,
            "life_ms": round(times.median_ms(LIFE), 1),
            "life_cpu_ms": round(times.cpu_ms(LIFE), 1),
            "life_machine_cpu_ms": round(times.machine_ms(LIFE)),
            "exec_ms": round(times.median_ms(EXEC), 1),
            "exec_cpu_ms": round(times.cpu_ms(EXEC), 2),
            "lists_ms": round(times.median_ms(LISTS), 2),
            "lists_p99_ms": round(Latency.of(times.seconds[LISTS]).p99_ms, 2),
            "lists_cpu_ms": round(times.cpu_ms(LISTS), 2),
            **{f"crowd_{name}": value for name, value in self.crowd.items()},
            **{f"steady_{name}": value for name, value in self.steady.items()},
        }


class Beat:
    """Something that is due again and again, on threads of its own, and how long each took."""

    def __init__(
        self, every_s: float, work: Callable[[], object], pool: ThreadPoolExecutor | None = None
    ) -> None:
        self.every_s = every_s
        self.seconds: list[float] = []
        self._work = work
        self._pool = pool

    def run(self, until: float) -> None:
        """Begin at each due time until then. Raises what the work raised."""
        pending = []
        due = time.perf_counter()
        while due < until:
            time.sleep(max(due - time.perf_counter(), 0.0))
            if self._pool is None:
                self._once()
            else:
                pending.append(self._pool.submit(self._once))
            due += self.every_s
        for each in pending:
            each.result()

    def _once(self) -> None:
        started = time.perf_counter()
        self._work()
        self.seconds.append(time.perf_counter() - started)


def keep_time(beats: Sequence[Beat], seconds: float) -> None:
    """Run them beside each other for that long. Raises what the first of them raised."""
    until = time.perf_counter() + seconds
    failed: list[BaseException] = []

    def run(beat: Beat) -> None:
        try:
            beat.run(until)
        except BaseException as error:  # noqa: BLE001 - raised again below, by the caller's thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=(beat,)) for beat in beats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


ROWS = (
    ("a further pod's life, ms", "life_ms"),
    ("  cpu ms", "life_cpu_ms"),
    ("  machine cpu ms", "life_machine_cpu_ms"),
    ("ExecSync, ms", "exec_ms"),
    ("  cpu ms", "exec_cpu_ms"),
    ("both lists, ms", "lists_ms"),
    ("  p99 ms", "lists_p99_ms"),
    ("  cpu ms", "lists_cpu_ms"),
    ("clients at once: pods/s", "crowd_pods_per_s"),
    ("  a life's cpu ms", "crowd_cpu_ms"),
    ("  a life's machine cpu ms", "crowd_machine_cpu_ms"),
    ("steady: cpu with helpers, s", "steady_with_helpers_cpu_s"),
    ("  cpu s", "steady_cpu_s"),
    ("  machine cpu s", "steady_machine_cpu_s"),
    ("  both lists, p99 ms", "steady_lists_p99_ms"),
    ("  ExecSync, ms", "steady_exec_ms"),
    ("  ExecSync, p99 ms", "steady_exec_p99_ms"),
)


def print_table(pods: int, columns: Sequence[dict[str, Any]]) -> None:
    """For a person: the table of that number of pods, one column for each server."""
    print(f"{f'{pods} idle pods':<30}" + "".join(f"{row['server']:>14}" for row in columns))
    for title, key in ROWS:
        print(f"{title:<30}" + "".join(f"{row[key]:>14}" for row in columns), flush=True)


def main() -> int:
    """Measure and print; 0 always: a table, not a gate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pods", type=numbers, default=[10, 100, 250], metavar="N,N,...")
    parser.add_argument("--rounds", type=int, default=10, help="lives for each number of pods")
    parser.add_argument("--clients", type=int, default=4, help="that make pods at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each steady time")
    options = servers.parse_options(parser)
    rows: list[dict[str, Any]] = []
    with (
        beside_floor() as (daemon, floor),
        servers.beside(options.beside, floor.work_dir) as others,
    ):
        loaded = [Loaded(server) for server in (ours(daemon), *others)]
        for pods in options.pods:
            for each in loaded:
                each.fill(pods)
            for number in range(options.rounds):
                for each in loaded:
                    each.round(number)
            for each in loaded:
                each.at_once(options.clients, options.rounds)
            for each in loaded:
                each.steady_time(options.seconds)
            found = [each.report(pods) for each in loaded]
            rows += found
            if not options.json:
                print_table(pods, found)
    if options.json:
        print(json.dumps(rows, indent=1))
    return 0


def numbers(text: str) -> list[int]:
    """How many pods, each time more: `10,100`. Raises ArgumentTypeError."""
    found = [int(word) for word in text.split(",")]
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: at least one pod each time")
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main())
