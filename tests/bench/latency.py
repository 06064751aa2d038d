"""How long a call takes while nothing else happens, and during other work; and many running containers for that."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.image.builtin import busybox_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.daemon import Daemon

IMAGE = "localhost/bench:1"
PODS = 10
CONTAINERS_OF_A_POD = 10
PAUSE_S = 0.01
"""Between two calls: their own load should not be what is measured."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of so many calls."""

    calls: int
    median_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """From measurements in seconds, at least two."""
        hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
        return cls(
            len(seconds),
            statistics.median(seconds) * 1000,
            hundredths[98] * 1000,
            max(seconds) * 1000,
        )


def run_containers(daemon: Daemon, work_dir: Path) -> None:
    """100 running containers, on the host's network: no interface of the machine changes."""
    archive = work_dir / "sleepers.tar"
    archive.write_bytes(busybox_archive(IMAGE))
    client = daemon.client
    client.import_image(archive)
    for _ in range(PODS):
        config = client.pod_config(host_network=True)
        pod = client.run_pod(config)
        for _ in range(CONTAINERS_OF_A_POD):
            client.run(pod, client.container_config(IMAGE, ["sleep", "3600"]), config)


def idle(call: Callable[[], object], seconds: float) -> Latency:
    """Of `call`, while nothing else happens."""
    over = threading.Event()
    threading.Timer(seconds, over.set).start()
    return Latency.of(_calls(call, over))


def during(call: Callable[[], object], work: Callable[[], None]) -> Latency:
    """Of `call`, while `work` runs."""
    over = threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            over.set()

    worker = threading.Thread(target=run, name="work")
    worker.start()
    found = _calls(call, over)
    worker.join()
    return Latency.of(found)


def _calls(call: Callable[[], object], over: threading.Event) -> list[float]:
    found = []
    while not over.wait(PAUSE_S):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found
