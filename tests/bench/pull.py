"""What pulls cost, beside Debian's containerd in the same run, and what other calls notice of them.

    python -m tests.bench.pull [--registry HOST:PORT] [--rounds 3] [--only NAME] [--json]

Starts a registry on the loopback. In each round each image is pulled into a new daemon and a new containerd (if that
and crictl are on PATH), whose stores are empty, turn by turn. One more round, not timed, samples their memory. Then
ListContainers with 100 running containers, idle, while containerd pulls (so that the machine is as busy, and the daemon
is not), and while the daemon pulls; then ten pulls at once. Nothing here judges: a table, not a gate.

Nothing is removed before the end: ext4 looks for free inodes past those that were deleted within the last minutes, so
that files made soon after a removal cost several times as much, and not the same for whoever comes first.

The images are made here (`pull_images.py`). With `--registry`, one that has `bench/debian:full`, `bench/debian:zstd`,
`bench/small:20k` and `bench/manylayers:61` replaces all but the large one. Needs root, docker-registry, some 25 GB of
disk, and what `tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import images as small_images
from tests.bench import latency, pull_images
from tests.bench.containerd import containerd
from tests.bench.footprint import Peak, cpu_s, peak_memory
from tests.harness.daemon import Daemon
from tests.harness.isolation import disk_dir
from tests.harness.registry import docker_registry

if TYPE_CHECKING:
    from tests.harness.registry import DockerRegistry

NAMES = ("bench/debian:full", "bench/debian:zstd", "bench/small:20k", "bench/manylayers:61")
LARGE = "bench/large:1g"
WARM_UP = "bench/warm-up:1"
PULLS_AT_ONCE = 10
IDLE_S = 10.0
TIMEOUT_S = 600
AIM_RATIO, AIM_MIB, AIM_LATENCY = 0.5, 150, 3.0


@dataclass(frozen=True)
class Server:
    """One that pulls."""

    name: str
    pid: int
    socket: Path

    def pull(self, image: str) -> None:
        """As an operator does. Raises: RuntimeError with what it said."""
        options = ["--image-endpoint", f"unix://{self.socket}", "--timeout", f"{TIMEOUT_S}s"]
        done = subprocess.run(
            ["crictl", *options, "pull", image],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: crictl pull {image}: {done.stderr}")


class Bench:
    """What everything here works with: directories, a registry, what is to be pulled."""

    def __init__(self, stack: ExitStack, only: str, given: str | None) -> None:
        """`given`: a registry that has `NAMES`; with none they are made."""
        self._stack = stack
        self.work_dir = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="cri-bench-", dir=disk_dir()))
        )
        (self.work_dir / "registry").mkdir()
        self.registry = stack.enter_context(docker_registry(self.work_dir / "registry"))
        host = given or self.registry.host
        names = [name for name in NAMES if fnmatch.fnmatch(name, only)]
        if given is None:
            for name in names:
                _push(self.registry, name)
        self.images = [f"{host}/{name}" for name in names]
        if fnmatch.fnmatch(LARGE, only):
            _push(self.registry, LARGE)
            self.images.append(f"{self.registry.host}/{LARGE}")
        _push(self.registry, WARM_UP)

    def daemon(self) -> Daemon:
        """A new one with an empty store, which has pulled once: what is loaded with the first pull is there."""
        daemon = Daemon(f"crib{os.getpid()}", settings={"log": {"level": "info"}})
        self._stack.callback(daemon.destroy)
        daemon.start()
        daemon.client.pull(f"{self.registry.host}/{WARM_UP}")
        return daemon

    def servers(self, daemon: Daemon, stack: ExitStack) -> list[Server]:
        """The daemon and, if it is on PATH, containerd."""
        assert daemon.pid is not None
        found = [Server("cri-shim", daemon.pid, daemon.socket)]
        if shutil.which("containerd"):
            work_dir = Path(tempfile.mkdtemp(dir=self.work_dir))
            pid, socket = stack.enter_context(containerd(work_dir))
            found.append(Server("containerd", pid, socket))
            found[1].pull(f"{self.registry.host}/{WARM_UP}")
        return found


def _push(registry: DockerRegistry, name: str) -> None:
    repository, tag = name.split(":")
    match name:
        case "bench/debian:full":
            pull_images.push_userland(registry, repository, tag, "gzip")
        case "bench/debian:zstd":
            pull_images.push_userland(registry, repository, tag, "zstd")
        case "bench/small:20k":
            pull_images.push_small_files(registry, repository, tag)
        case "bench/manylayers:61":
            pull_images.push_many_layers(registry, repository, tag)
        case "bench/large:1g":
            pull_images.push_large(registry, repository, tag)
        case _:
            registry.push(repository, tag, small_images.layer(small_images.file("warm", b"up\n")))


def compare(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    """One row per image."""
    wall_s: dict[tuple[str, str], list[float]] = {}
    used_s: dict[tuple[str, str], list[float]] = {}
    peaks: dict[tuple[str, str], Peak] = {}
    names: list[str] = []
    for turn, image in itertools.product(range(rounds + 1), bench.images):
        with ExitStack() as stack:
            daemon = bench.daemon()
            servers = bench.servers(daemon, stack)
            names = [server.name for server in servers]
            for server in servers if turn % 2 else reversed(servers):
                key = server.name, image
                os.sync()  # what was written before is not this one's to wait for
                if turn == rounds:
                    with peak_memory(server.pid) as peaks[key]:
                        server.pull(image)
                    continue
                used, started = cpu_s(server.pid), time.perf_counter()
                server.pull(image)
                wall_s.setdefault(key, []).append(time.perf_counter() - started)
                used_s.setdefault(key, []).append(cpu_s(server.pid) - used)
            daemon.stop()
    rows = []
    for image in bench.images:
        row: dict[str, Any] = {"image": image.partition("/")[2]}
        for name in names:
            row[name] = {
                "seconds": round(statistics.median(wall_s[name, image]), 2),
                "cpu_s": round(statistics.median(used_s[name, image]), 2),
                "peak_mib": round(peaks[name, image].mib),
            }
        if len(names) == 2:
            # Pair by pair: the machine's speed drifts.
            for of, times in (("ratio", wall_s), ("cpu_ratio", used_s)):
                ours, theirs = (times[name, image] for name in names)
                pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
                row[of] = round(statistics.median(pairs), 2)
        rows.append(row)
    return rows


def listing(bench: Bench, daemon: Daemon) -> dict[str, Any]:
    """ListContainers, idle and while all images are pulled one after the other, by another and by the daemon."""
    client = daemon.client
    latency.run_containers(daemon, bench.work_dir)
    latency.idle(client.containers, 1.0)
    found = {"idle": latency.idle(client.containers, IDLE_S)}
    with ExitStack() as stack:
        # The last one has the same images to pull, and loads the machine as much.
        for server in reversed(bench.servers(daemon, stack)) if shutil.which("crictl") else ():

            def pull_all(puller: Server = server) -> None:
                for image in bench.images:
                    puller.pull(image)

            found[f"{server.name} pulls"] = latency.during(client.containers, pull_all)
    client.remove_all_pods()
    idle = found["idle"].p99_ms
    return {
        name: {**asdict(times), "p99_ratio": round(times.p99_ms / idle, 2)}
        for name, times in found.items()
    }


def at_once(bench: Bench, daemon: Daemon) -> dict[str, float]:
    """Images without a layer in common, pulled at once: seconds, and the peak of memory."""
    assert daemon.pid is not None
    client = daemon.client
    names = [f"bench/copy:{number}" for number in range(PULLS_AT_ONCE)]
    for number, name in enumerate(names):
        repository, tag = name.split(":")
        pull_images.push_medium(bench.registry, repository, tag, seed=number)
    pulls = [
        threading.Thread(target=client.pull, args=(f"{bench.registry.host}/{name}",))
        for name in names
    ]
    with peak_memory(daemon.pid) as peak:
        started = time.perf_counter()
        for pull in pulls:
            pull.start()
        for pull in pulls:
            pull.join()
        seconds = time.perf_counter() - started
    missing = [name for name in names if client.image_id(f"{bench.registry.host}/{name}") is None]
    if missing:
        raise RuntimeError(f"pulls at once failed: {', '.join(missing)}\n{daemon.log_tail()}")
    return {
        "pulls": len(names),
        "seconds": round(seconds, 1),
        "peak_mib": round(peak.mib),
        "of_which_daemon_mib": round(peak.of_which_daemon_mib),
    }


def show(found: dict[str, Any], rounds: int) -> None:
    """As tables."""
    heads = ("image", "s", "containerd", "ratio", "CPU s", "containerd", "ratio", "peak MiB")
    print(("{:<20}" + "{:>11}" * 8).format(*heads, "containerd") + f"   medians of {rounds}")
    for row in found.get("pulls", ()):
        ours, theirs = row["cri-shim"], row.get("containerd", {})
        cells = (
            *(ours["seconds"], theirs.get("seconds", ""), row.get("ratio", "")),
            *(ours["cpu_s"], theirs.get("cpu_s", ""), row.get("cpu_ratio", "")),
            *(ours["peak_mib"], theirs.get("peak_mib", "")),
        )
        print(("{:<20}" + "{:>11}" * 8).format(row["image"], *cells))
    print("\nListContainers, 100 containers")
    for name, times in found["listing"].items():
        print(
            f"  {name:<18} median {times['median_ms']:.2f} ms, p99 {times['p99_ms']:.2f} ms ({times['p99_ratio']} "
            f"times idle), max {times['max_ms']:.1f} ms of {times['calls']}"
        )
    many = found["at_once"]
    print(
        f"{many['pulls']} pulls at once: {many['seconds']} s, peak {many['peak_mib']} MiB "
        f"({many['of_which_daemon_mib']} MiB the daemon)"
    )
    print(f"Aims: ratio {AIM_RATIO}, peak {AIM_MIB} MiB, p99 {AIM_LATENCY} times idle")


def main() -> int:
    """Measure and print; 0 always."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--registry", metavar="HOST:PORT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="*", metavar="NAME", help="a pattern: bench/debian:*")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        bench = Bench(stack, options.only, options.registry)
        if shutil.which("crictl"):
            found["pulls"] = compare(bench, options.rounds)
        daemon = bench.daemon()
        try:
            found["listing"] = listing(bench, daemon)
            found["at_once"] = at_once(bench, daemon)
        finally:
            # Also after a failure: nothing else takes the pods away.
            if daemon.pid is not None:
                daemon.client.remove_all_pods()
                daemon.stop()
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
