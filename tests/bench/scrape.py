"""What a scrape of statistics and metrics costs on a full node.

    python -m tests.bench.scrape [--pods 10,100,250] [--beside NAME=SOCKET ...] [--rounds 20] [--json]

For each number of idle pods each server, by turns, is asked for the statistics of all pods and for the metrics of all
pods: by the clock, and as processor time of the server's process. Metrics are left out of a server that has none.
Nothing here judges: a table, not a gate. Needs root and what `tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.bench import servers
from tests.bench.density import Loaded, numbers
from tests.bench.pod import beside_floor, ours

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.servers import Server

TIMEOUT_S = 60.0


def calls(server: Server) -> dict[str, Callable[[], object]]:
    """What is asked, by its name."""
    runtime = server.client.runtime
    asked: dict[str, Callable[[], object]] = {
        "ListPodSandboxStats": partial(
            runtime.ListPodSandboxStats, api.ListPodSandboxStatsRequest(), timeout=TIMEOUT_S
        ),
        "ListPodSandboxMetrics": partial(
            runtime.ListPodSandboxMetrics, api.ListPodSandboxMetricsRequest(), timeout=TIMEOUT_S
        ),
    }
    return {name: call for name, call in asked.items() if _is_served(call)}


def _is_served(call: Callable[[], object]) -> bool:
    """Whether it is; a server that measures writable layers for the first time is not measured with that."""
    try:
        call()
    except grpc.RpcError as error:
        # What grpc raises is both, which its types don't say.
        if cast("grpc.Call", error).code() is grpc.StatusCode.UNIMPLEMENTED:
            return False
        raise
    return True


def measure(loaded: Loaded, pods: int, rounds: int) -> list[dict[str, Any]]:
    """One server with that many pods: a row for each call."""
    loaded.fill(pods)
    asked = calls(loaded.server)
    for _ in range(rounds):
        for name, call in asked.items():
            loaded.times.call(name, call)
    return [
        {
            "pods": pods,
            "server": loaded.server.name,
            "call": name,
            "ms": round(loaded.times.median_ms(name), 1),
            "cpu_ms": round(loaded.times.cpu_ms(name), 1),
        }
        for name in asked
    ]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """One line a row."""
    for row in rows:
        print(
            "{pods:>5} pods  {server:<12} {call:<22} {ms:>8} ms  {cpu_ms:>8} ms of cpu".format(
                **row
            )
        )


def main() -> int:
    """Measure and print; 0 always."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pods", type=numbers, default=[10, 100, 250], metavar="N,N,...")
    parser.add_argument("--rounds", type=int, default=20, help="calls for each number of pods")
    options = servers.parse_options(parser)
    rows: list[dict[str, Any]] = []
    with (
        beside_floor() as (daemon, floor),
        servers.beside(options.beside, floor.work_dir) as others,
    ):
        all_loaded = [Loaded(server) for server in (ours(daemon), *others)]
        for pods in options.pods:
            for each in all_loaded:
                found = measure(each, pods, options.rounds)
                rows += found
                if not options.json:
                    print_table(found)
    if options.json:
        print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
