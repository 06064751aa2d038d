"""What a kubelet's relist takes: ListPodSandbox and ListContainers, idle and beside pulls and streams.

    python -m tests.bench.lists [--pods 20,300] [--seconds 10] [--beside NAME=SOCKET ...] [--json]

For each number of idle pods each server, by turns, is asked for both lists again and again, with pauses of 10 ms: while
nothing else happens; while another process computes; while the server pulls images of 64 MiB, one after the other, from
a registry on the loopback; and while an exec of it streams zeros, at full rate, to crictl. Registry and crictl step
aside for everyone else, as if they were elsewhere. All compete for the processors as services of one systemd slice do,
not by session: the machine's `kernel.sched_autogroup_enabled` is 0 meanwhile. Nothing here judges: a table, not a gate.
Needs root, docker-registry, crictl, and what `tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import latency, pull_images, servers
from tests.bench.density import Loaded, numbers
from tests.bench.pod import beside_floor, ours
from tests.bench.streaming import exec_out, step_aside
from tests.harness.registry import docker_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.latency import Latency
    from tests.bench.servers import Server
    from tests.harness.registry import DockerRegistry

STREAM_MIB = 256
IMAGES = 4
"""No two have a layer in common."""
AIM_RATIO = 3.0
AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@dataclass(frozen=True)
class Row:
    """The latency of both lists of one server with so many pods, while something happened."""

    pods: int
    server: str
    beside: str
    latency: Latency
    p99_ratio: float
    """To the p99 while nothing else happened."""

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pods": self.pods,
            "server": self.server,
            "beside": self.beside,
            "calls": self.latency.calls,
            "median_ms": round(self.latency.median_ms, 2),
            "p99_ms": round(self.latency.p99_ms, 2),
            "p99_ratio": round(self.p99_ratio, 2),
        }


@contextmanager
def one_slice() -> Iterator[None]:
    """Let the kernel share the processors among all processes alike, whatever session they are of."""
    if not AUTOGROUP.exists():
        yield
        return
    before = AUTOGROUP.read_text()
    AUTOGROUP.write_text("0")
    try:
        yield
    finally:
        AUTOGROUP.write_text(before)


def push_images(registry: DockerRegistry) -> list[str]:
    """What is pulled; the names."""
    names = [f"bench/copy:{number}" for number in range(IMAGES)]
    for number, name in enumerate(names):
        repository, tag = name.split(":")
        pull_images.push_medium(registry, repository, tag, seed=number)
    return [f"{registry.host}/{name}" for name in names]


def pull_on_and_on(server: Server, images: Sequence[str], seconds: float) -> None:
    """One pull after the other; what was pulled goes again."""
    until = time.monotonic() + seconds
    for image in itertools.cycle(images):
        server.client.pull(image)
        server.client.remove_image(image)
        if time.monotonic() > until:
            return


def stream_on_and_on(socket: Path, container: str, seconds: float) -> None:
    """One exec after the other that writes zeros."""
    step_aside()
    command = ["crictl", "--runtime-endpoint", f"unix://{socket}", "exec", container]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        exec_out(command, STREAM_MIB)


def compute(seconds: float) -> None:
    """Nothing useful, on one processor."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(10_000))


def elsewhere(work: Callable[..., None], *arguments: object) -> None:
    """Do it in a process of its own: this one only calls and looks at the clock. Raises RuntimeError when it fails."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{work.__name__}: see above")


def measure(loaded: Loaded, pods: int, images: Sequence[str], seconds: float) -> list[Row]:
    """One row for each of what happens meanwhile."""
    server, lists = loaded.server, loaded.lists
    latency.idle(lists, 1.0)
    idle = latency.idle(lists, seconds)
    works: dict[str, Callable[[], None]] = {
        "another process computes": partial(elsewhere, compute, seconds),
        "it pulls": partial(pull_on_and_on, server, images, seconds),
        "it streams": partial(
            elsewhere, stream_on_and_on, server.socket, loaded.containers[0], seconds
        ),
    }
    found = {"nothing": idle}
    found |= {name: latency.during(lists, work) for name, work in works.items()}
    return [
        Row(pods, server.name, name, each, each.p99_ms / idle.p99_ms)
        for name, each in found.items()
    ]


def print_table(rows: Sequence[Row]) -> None:
    """For a person."""
    for pods, group in itertools.groupby(rows, key=lambda row: row.pods):
        print(
            f"{f'both lists, {pods} pods, while':<32}{'server':>14}{'median ms':>12}{'p99 ms':>9}{'to idle':>9}"
        )
        for row in group:
            found = row.document()
            print(
                f"{row.beside:<32}{row.server:>14}{found['median_ms']:>12}{found['p99_ms']:>9}{found['p99_ratio']:>9}"
            )
    print(f"Aim: p99 at most {AIM_RATIO:g} times that while nothing else happens")


def main() -> int:
    """Measure and print; 0 always."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pods", type=numbers, default=[20, 300], metavar="N,N,...")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row")
    options = servers.parse_options(parser)
    rows: list[Row] = []
    with ExitStack() as stack:
        stack.enter_context(one_slice())
        daemon, floor = stack.enter_context(beside_floor())
        others = stack.enter_context(servers.beside(options.beside, floor.work_dir))
        registry_dir = floor.work_dir / "registry"
        registry_dir.mkdir()
        images = push_images(stack.enter_context(docker_registry(registry_dir, niceness=19)))
        all_loaded = [Loaded(server) for server in (ours(daemon), *others)]
        for pods in options.pods:
            for each in all_loaded:
                each.fill(pods)
                rows += measure(each, pods, images, options.seconds)
    if options.json:
        print(json.dumps([row.document() for row in rows], indent=1))
    else:
        print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
