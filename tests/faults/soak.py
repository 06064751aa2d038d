"""Hours of a node's everyday life, and what the daemon holds meanwhile: memory, descriptors, threads, tasks, files.

    python -m tests.faults.soak [--minutes 10] [--seed N]

Clients churn pods and images as in a campaign, but nobody dies. Beside them a pod stands still, is probed by execs ten
times a second and has its statistics asked for, as the kubelet does. A sample is taken every second; of each tenth of
the time the lowest one counts, since what is under way comes and goes. A leak would grow from tenth to tenth.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
import threading
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.campaign import report, second_network
from tests.faults.churn import IMAGE, Churn
from tests.faults.counted_tasks import CountedTasks
from tests.faults.ledger import Ledger
from tests.faults.own_node import daemon_of_its_own
from tests.faults.served_images import kept_on_disk, serve_images
from tests.harness.client import Client

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

PARTS = 10
PROBES_PER_S = 10.0
SAMPLE_S = 1.0
CLIENTS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """What the daemon holds at one moment."""

    rss_kib: int
    descriptors: int
    threads: int
    tasks: int
    files: int


GROWTH = Sample(rss_kib=4 << 10, descriptors=2, threads=1, tasks=3, files=8)
"""What the last tenth may have more than the second: noise of what is under way, and what the allocator keeps."""


class Soak:
    """One daemon's everyday life."""

    def __init__(self, daemon: Daemon, directory: Path, *, seed: int) -> None:
        """`directory` is empty, and for notes."""
        self.ledger = Ledger()
        self.samples: list[Sample] = []
        self._daemon = daemon
        self._seed = seed
        self._tasks = CountedTasks(daemon, directory / "tasks")
        self._enough = threading.Event()

    def run(self, seconds: float) -> None:
        """Live for so long."""
        self._daemon.restart()
        try:
            with serve_images(CLIENTS) as served, second_network(self._daemon) as network:
                churns = [
                    Churn(number, self._daemon, self.ledger, served, network, self._seed)
                    for number in range(CLIENTS)
                ]
                prober = threading.Thread(target=self._probe, name="prober")
                prober.start()
                for churn in churns:
                    churn.start()
                self._sample(seconds)
                self._enough.set()
                for churn in churns:
                    churn.end()
                for churn in churns:
                    churn.join()
                prober.join()
        finally:
            self._tasks.end()

    def _sample(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(SAMPLE_S)
            self.samples.append(self._look())

    def _look(self) -> Sample:
        proc = Path(f"/proc/{self._daemon.pid}")
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (proc / "status").read_text(), re.MULTILINE))
        trees = (self._daemon.root / "sandboxes", self._daemon.root / "containers")
        return Sample(
            rss_kib=int(status["VmRSS"]),
            descriptors=len(os.listdir(proc / "fd")),
            threads=int(status["Threads"]),
            tasks=self._tasks.count(),
            files=sum(len(os.listdir(tree)) for tree in trees)
            + len(os.listdir(self._daemon.state / "exits"))
            + len(kept_on_disk(self._daemon.root)),
        )

    def _probe(self) -> None:
        """A kubelet's everyday: probes and statistics, and lists once a second."""
        daemon = self._daemon
        client = Client(
            daemon.socket, log_dir=daemon.pod_log_dir, cgroup_parent=daemon.cgroup_parent
        )
        try:
            config = client.pod_config("stands-still")
            pod = client.run_pod(config)
            container = client.run(
                pod, client.container_config(IMAGE, ["sleep", "1000000"]), config
            )
            beat = 0
            while not self._enough.wait(1 / PROBES_PER_S):
                beat += 1
                answer = client.exec(container, "echo", "alive")
                if answer.stdout != b"alive\n":
                    self.ledger.violated(f"probe {beat}: {answer!r}")
                if beat % PROBES_PER_S == 0:
                    client.runtime.ListContainerStats(api.ListContainerStatsRequest(), timeout=10)
                    client.images.ImageFsInfo(api.ImageFsInfoRequest(), timeout=10)
                    client.pods()
                    client.containers()
                self.ledger.count("probe")
            client.stop_pod(pod)
            client.remove_pod(pod)
        except grpc.RpcError as error:
            self.ledger.violated(f"prober: {error.code().name}: {error.details()}")
        finally:
            client.close()

    def lowest(self) -> list[Sample]:
        """Of each part of the time, the lowest of each value."""
        size = max(len(self.samples) // PARTS, 1)
        parts = [self.samples[at : at + size] for at in range(0, len(self.samples), size)]
        return [
            Sample(*(min(values) for values in zip(*map(astuple, part), strict=True)))
            for part in parts[:PARTS]
        ]

    def grown(self) -> list[str]:
        """What was not flat."""
        parts = self.lowest()
        # The first part has what comes once: modules loaded late, pools filled, caches.
        before, after = parts[min(1, len(parts) - 1)], parts[-1]
        return [
            f"{field.name}: from {getattr(before, field.name)} to {getattr(after, field.name)}"
            for field in fields(Sample)
            if getattr(after, field.name)
            > getattr(before, field.name) + getattr(GROWTH, field.name)
        ]

    def tell(self) -> None:
        """The lowest values of each part, as a table."""
        names = [field.name for field in fields(Sample)]
        print(" ".join(f"{name:>12}" for name in ("part", *names)))
        for number, sample in enumerate(self.lowest(), start=1):
            print(" ".join(f"{value:12}" for value in (number, *astuple(sample))))


def main() -> int:
    """A soak of its own, on a node of its own."""
    parser = argparse.ArgumentParser(description="Look for slow leaks.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    with daemon_of_its_own(IMAGE) as (daemon, notes):
        soak = Soak(daemon, notes, seed=options.seed)
        soak.run(options.minutes * 60)
        daemon.restart()
    report(soak.ledger)
    soak.tell()
    grown = soak.grown()
    print("not flat: " + ", ".join(grown) if grown else "flat")
    return 1 if grown or soak.ledger.violations else 0


if __name__ == "__main__":
    sys.exit(main())
