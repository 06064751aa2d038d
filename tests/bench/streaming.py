"""How fast streams are, beside Debian's containerd in the same run, and what other calls notice of them.

    python -m tests.bench.streaming [--mib 1024] [--rounds 3] [--only NAME] [--no-listing] [--json]

Zeros out of an exec, into an exec's input, and both ways through a port-forward, over SPDY and WebSocket, always with
crictl as the client, turn by turn; containerd is left out unless it is on PATH, and what it does not speak is empty.
The floor of an exec is a plain pipe through `runc exec`, that of a port-forward a connection without one. Then
ListContainers with 100 running containers: idle, while containerd streams (so that the machine is as busy, and the
daemon is not), and while the daemon streams; there the client of the stream has the lowest priority, since elsewhere it
is on another machine. Nothing here judges: a table, not a gate.

Pods are on the network of the benchmark's own node. Needs root, crictl, and what `tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import json
import multiprocessing
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.image.builtin import PAUSE_REFERENCE, busybox_archive, pause_archive
from tests.bench import latency
from tests.bench.containerd import containerd
from tests.harness.client import Client
from tests.harness.daemon import Daemons
from tests.harness.isolation import Session, disk_dir

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.harness.daemon import Daemon

IMAGE = "localhost/streaming-bench:1"
TRANSPORTS = ("spdy", "websocket")
WAIT_S = 10.0
IDLE_S = LOADED_S = 10.0
BUFFER_BYTES = 1 << 20
AIM_RATIO, AIM_LATENCY = 1.0, 3.0
_CONFIG = """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
"""
"""The second for machines on which nobody may be made less likely to be killed."""
SINK = ("sh", "-c", "cat >/dev/null; cat /proc/$$/io")
"""Not busybox's dd, which stops at the first read that gives less than it asked for when containerd is its source."""
_READ = re.compile(rb"^rchar: (\d+)$", re.MULTILINE)


class BenchError(Exception):
    """A stream broke, or lost something."""


@dataclass(frozen=True)
class Server:
    """One that streams: a pod with a container that sleeps, and two that serve connections."""

    name: str
    socket: Path
    pod: str
    sleeper: str
    source_port: int
    sink_port: int

    def crictl(self, *arguments: str) -> list[str]:
        """A command line."""
        return ["crictl", "--runtime-endpoint", f"unix://{self.socket}", *arguments]


def serve(name: str, client: Client, socket_file: Path, mib: int, first_port: int) -> Server:
    """Run the pod. What a connection to the first port gets is `mib` MiB; to the second, the count of what it sent."""
    config = client.pod_config(host_network=True)
    pod = client.run_pod(config)

    def run(*command: str) -> str:
        return client.run(pod, client.container_config(IMAGE, command), config)

    nc = ("nc", "-ll", "-p")
    run(*nc, str(first_port), "-e", "dd", "if=/dev/zero", "bs=1M", f"count={mib}")
    run(*nc, str(first_port + 1), "-e", *SINK)
    sleeper = run("sleep", "1000000")
    _wait_listening(first_port)
    _wait_listening(first_port + 1)
    return Server(name, socket_file, pod, sleeper, first_port, first_port + 1)


# --- streams: each moves `mib` MiB and returns the seconds that took


def exec_out(command: list[str], mib: int) -> float:
    """Out of `dd` behind `command`."""
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "dd", "if=/dev/zero", "bs=1M", f"count={mib}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        received = _drain(process.stdout.readinto)  # type: ignore[attr-defined]
        _, said = process.communicate()
    return _checked(started, received, mib, process.returncode, said)


def exec_in(command: list[str], mib: int) -> float:
    """Into `dd` behind `command`."""
    started = time.perf_counter()
    with subprocess.Popen(
        ["dd", "if=/dev/zero", "bs=1M", f"count={mib}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as source:
        done = subprocess.run(
            [*command, *SINK],
            stdin=source.stdout,
            capture_output=True,
            check=False,
        )
    return _checked(started, _copied(done.stdout), mib, done.returncode, done.stderr)


def connection_out(port: int, mib: int) -> float:
    """From whoever serves there."""
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        received = _drain(connection.recv_into)
    return _checked(started, received, mib, 0, b"")


def connection_in(port: int, mib: int, *, answered: bool = True) -> float:
    """To whoever serves there, who says how much it was, unless the connection can't be ended in one direction."""
    zeros = bytes(BUFFER_BYTES)
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(mib):
            connection.sendall(zeros)
        connection.shutdown(socket.SHUT_WR)
        said = connection.makefile("rb").read()
    received = _copied(said) if answered else mib << 20
    return _checked(started, received, mib, 0, said)


@contextmanager
def forwarding(server: Server, transport: str, port: int) -> Iterator[int]:
    """A local port that leads to the pod's."""
    local = _free_port()
    command = server.crictl("port-forward", "--transport", transport, server.pod, f"{local}:{port}")
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            assert process.stdout is not None
            said = b""
            while b"Forwarding from" not in said:  # after warnings, perhaps
                if not (line := process.stdout.readline()):
                    raise BenchError(f"{server.name}: {transport}: {said.decode()}")
                said += line
            yield local
        finally:
            process.terminate()


def _drain(receive_into: Callable[[memoryview], int]) -> int:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    received = 0
    while size := receive_into(buffer):
        received += size
    return received


def _copied(said: bytes) -> int:
    """How many bytes `SINK` says it had; of what the shell read itself, it's the whole MiB that count."""
    read = _READ.search(said)
    return int(read[1]) >> 20 << 20 if read else 0


def _checked(started: float, received: int, mib: int, status: int, said: bytes) -> float:
    seconds = time.perf_counter() - started
    if status != 0 or received != mib << 20:
        text = said.decode(errors="replace")[-500:]
        raise BenchError(f"{received} bytes of {mib << 20}, status {status}: {text}")
    return seconds


def stream(server: Server, what: str, transport: str, mib: int) -> float:
    """One of `WAYS`, through crictl."""
    if what.startswith("exec"):
        options = ["--interactive"] if what == "exec in" else []
        command = server.crictl("exec", *options, "--transport", transport, server.sleeper)
        return (exec_in if what == "exec in" else exec_out)(command, mib)
    out = what == "forward out"
    with forwarding(server, transport, server.source_port if out else server.sink_port) as port:
        if out:
            return connection_out(port, mib)
        # Once the client has no more to say, containerd ends the connection in both directions.
        return connection_in(port, mib, answered=server.name != "containerd")


WAYS = ("exec out", "exec in", "forward out", "forward in")


def stream_on_and_on(server: Server, way: str, transport: str, mib: int) -> None:
    """One stream after the other, for a while; the client steps aside for everyone else, as if it were elsewhere."""
    step_aside()
    until = time.monotonic() + LOADED_S
    while time.monotonic() < until:
        stream(server, way, transport, mib)


def step_aside() -> None:
    """Let everyone else compute first, from now on."""
    os.setsid()  # where the kernel groups processes by session, one's niceness counts within its own only
    os.nice(19)
    with suppress(FileNotFoundError):
        Path("/proc/self/autogroup").write_text("19")


def floor(server: Server, runc: list[str], what: str, mib: int) -> float:
    """The same without a streaming server."""
    match what:
        case "exec out":
            return exec_out([*runc, "exec", server.sleeper], mib)
        case "exec in":
            return exec_in([*runc, "exec", server.sleeper], mib)
        case "forward out":
            return connection_out(server.source_port, mib)
        case _:
            return connection_in(server.sink_port, mib)


# --- what is measured


def throughput(
    servers: list[Server], runc: list[str], mib: int, rounds: int, only: str
) -> list[dict[str, Any]]:
    """MiB/s, medians."""
    rates: dict[tuple[str, str, str], list[float]] = {}
    silent: set[tuple[str, str, str]] = set()
    ways = [way for way in WAYS if fnmatch.fnmatch(way, only)]
    for turn in range(rounds):
        for way in ways:
            rates.setdefault(("floor", way, ""), []).append(mib / floor(servers[0], runc, way, mib))
            for transport in TRANSPORTS:
                for server in servers if turn % 2 else reversed(servers):
                    key = server.name, way, transport
                    if key in silent:
                        continue
                    try:
                        seconds = stream(server, way, transport, mib)
                    except BenchError as error:
                        if server is servers[0] or "bad handshake" not in str(error):
                            raise
                        silent.add(key)
                        continue
                    rates.setdefault(key, []).append(mib / seconds)
    medians = {key: round(statistics.median(found)) for key, found in rates.items()}
    rows: list[dict[str, Any]] = []
    for way in ways:
        for transport in TRANSPORTS:
            row: dict[str, Any] = {"way": way, "transport": transport}
            row |= {server.name: medians.get((server.name, way, transport)) for server in servers}
            row["floor"] = medians["floor", way, ""]
            if row.get("containerd"):
                row["ratio"] = round(row["cri-shim"] / row["containerd"], 2)
            rows.append(row)
    return rows


def listing(
    daemon: Daemon, servers: list[Server], mib: int, work_dir: Path, only: str
) -> dict[str, Any]:
    """ListContainers, idle and while streams run at their full rate."""
    client = daemon.client
    latency.run_containers(daemon, work_dir)
    latency.idle(client.containers, 1.0)
    found = {"idle": latency.idle(client.containers, IDLE_S)}

    def measure(server: Server, way: str, transport: str) -> None:
        def streams() -> None:
            # In a process of its own: this one only calls ListContainers and looks at the clock.
            arguments = (server, way, transport, mib)
            process = multiprocessing.get_context("spawn").Process(
                target=stream_on_and_on, args=arguments
            )
            process.start()
            process.join()
            if process.exitcode != 0:
                raise BenchError(f"{server.name}: {way}, {transport}: see above")

        found[f"{server.name} {way}, {transport}"] = latency.during(client.containers, streams)

    for way in WAYS:
        if fnmatch.fnmatch(way, only):
            for server in reversed(servers):
                for transport in TRANSPORTS if server is servers[0] else TRANSPORTS[:1]:
                    measure(server, way, transport)
    idle = found["idle"].p99_ms
    return {
        name: {**asdict(times), "p99_ratio": round(times.p99_ms / idle, 2)}
        for name, times in found.items()
    }


# --- setting it up


def start_containerd(stack: ExitStack, work_dir: Path, mib: int, cgroup_parent: str) -> Server:
    """With the same image, and a pod on the same network."""
    directory = work_dir / "containerd"
    config = _CONFIG.format(pause=PAUSE_REFERENCE)
    _, socket_file = stack.enter_context(containerd(directory, config=config))
    pause = asyncio.run(_whole(pause_archive()))
    for name, archive in ((IMAGE, busybox_archive(IMAGE)), (PAUSE_REFERENCE, pause)):
        file = directory / "image.tar"
        file.write_bytes(archive)
        ctr = ["ctr", "--address", str(socket_file), "--namespace", "k8s.io", "images"]
        subprocess.run([*ctr, "import", str(file)], check=True, capture_output=True)
        names = subprocess.run([*ctr, "list", "-q"], check=True, capture_output=True, text=True)
        if name not in names.stdout.split():
            [imported] = [n for n in names.stdout.split() if n.endswith(f":{name}")]
            subprocess.run([*ctr, "tag", imported, name], check=True, capture_output=True)
    client = stack.enter_context(
        Client(socket_file, log_dir=directory / "logs", cgroup_parent=cgroup_parent)
    )
    stack.callback(client.remove_all_pods)
    time.sleep(1.0)  # its CRI part hears of images by events
    return serve("containerd", client, socket_file, mib, first_port=18100)


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_listening(port: int) -> None:
    """Without connecting: the servers would serve it."""
    listening = re.compile(f":{port:04X} 0+:0000 0A ")
    deadline = time.monotonic() + WAIT_S
    while not any(
        listening.search(Path(f"/proc/thread-self/net/{table}").read_text())
        for table in ("tcp", "tcp6")
    ):
        if time.monotonic() > deadline:
            raise BenchError(f"nobody listens on port {port}")
        time.sleep(0.05)


def show(found: dict[str, Any], rounds: int, mib: int) -> None:
    """As tables."""
    heads = ("MiB/s", "", "cri-shim", "containerd", "ratio", "floor")
    row_form = "{:<12} {:<10}" + "{:>12}" * 4
    print(row_form.format(*heads) + f"   medians of {rounds}, {mib} MiB each")
    for row in found["throughput"]:
        cells = (row.get("containerd"), row.get("ratio"), row["floor"])
        texts = ["" if cell is None else str(cell) for cell in cells]
        print(row_form.format(row["way"], row["transport"], row["cri-shim"], *texts))
    if "listing" in found:
        print("\nListContainers, 100 containers")
    for name, times in found.get("listing", {}).items():
        print(
            f"  {name:<34} median {times['median_ms']:.2f} ms, p99 {times['p99_ms']:.2f} ms ({times['p99_ratio']} "
            f"times idle), max {times['max_ms']:.1f} ms of {times['calls']}"
        )
    print(f"Aims: ratio {AIM_RATIO}, p99 {AIM_LATENCY} times idle")


def main() -> int:
    """Measure and print; 0 always."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="of one stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="*", metavar="NAME", help="a pattern: 'exec *'")
    parser.add_argument("--no-listing", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not shutil.which("crictl"):
        parser.error("crictl is not on PATH: put crictl of cri-tools v1.36 or newer there")
    found: dict[str, Any] = {}
    session = Session()
    session.claim()
    with ExitStack() as stack:
        stack.callback(session.release)
        session.enter()
        work_dir = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix=f"{session.token}-bench-", dir=disk_dir())
            )
        )
        daemon = Daemons(session.token, session.namespaces).create(
            settings={"log": {"level": "info"}}
        )
        stack.callback(daemon.destroy)
        daemon.start()
        stack.callback(daemon.client.remove_all_pods)
        archive = work_dir / "image.tar"
        archive.write_bytes(busybox_archive(IMAGE))
        daemon.client.import_image(archive)
        servers = [serve("cri-shim", daemon.client, daemon.socket, options.mib, first_port=18000)]
        if shutil.which("containerd"):
            parent = f"{daemon.cgroup_parent}-containerd"
            servers.append(start_containerd(stack, work_dir, options.mib, parent))
        runc = ["runc", "--root", str(daemon.state / "runtime" / "runc")]
        found["throughput"] = throughput(servers, runc, options.mib, options.rounds, options.only)
        if not options.no_listing:
            found["listing"] = listing(daemon, servers, options.mib, work_dir, options.only)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found, options.rounds, options.mib)
    return 0


if __name__ == "__main__":
    sys.exit(main())
