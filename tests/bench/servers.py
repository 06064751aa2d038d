"""The servers that a benchmark measures by turns: the daemon of its own, and any other whose socket is named.

`--beside NAME=SOCKET` names one more CRI server, which runs already and has its own networks and pause image. It needs
the benchmarks' image, which `--write-image FILE` writes as an archive: `ctr -n k8s.io images import FILE`,
`podman load -i FILE`. Its pods are made in a namespace of the benchmarks' own, and nothing else of it is touched.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.image.builtin import busybox_archive
from tests.bench import footprint
from tests.harness.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cri_shim._pb.cri.v1 import api_pb2 as api

IMAGE = "localhost/bench:1"
NAMESPACE = "cri-shim-bench"
OURS = "cri-shim"


@dataclass(frozen=True)
class Server:
    """One CRI server that runs."""

    name: str
    client: Client
    pid: int
    socket: Path
    handler: str = ""
    """The runtime handler of its pods."""

    def run_pod(self, config: api.PodSandboxConfig) -> str:
        """A pod of the benchmark's handler."""
        return self.client.run_pod(config, handler=self.handler)

    def pod_config(self) -> api.PodSandboxConfig:
        """Of a pod that is the benchmark's."""
        return self.client.pod_config(namespace=NAMESPACE)

    def idle_pod(self) -> str:
        """One more pod that does nothing; its container."""
        config = self.pod_config()
        wanted = self.client.container_config(IMAGE, ["sleep", "86400"])
        return self.client.run(self.run_pod(config), wanted, config)

    def remove_pods(self) -> None:
        """Take away the benchmarks' pods, those of an earlier run included."""
        for pod in self.client.pods():
            if pod.metadata.namespace == NAMESPACE:
                self.client.stop_pod(pod.id)
                self.client.remove_pod(pod.id)

    def process_cpu_s(self) -> float:
        """Processor time of the server's process so far, to the nanosecond."""
        # clock_getcpuclockid(3): the processor time of another process, all its threads.
        return time.clock_gettime((~self.pid << 3) | 2)

    def with_helpers_cpu_s(self) -> float:
        """Processor time so far, in ticks, of the server and its helpers, and what those started and waited for.

        Helpers are its descendants, and whatever has its socket's path on its command line, as containerd's shims do.
        """
        return sum(footprint.own_cpu_s(pid) for pid in self._programs())

    def _programs(self) -> set[int]:
        found = set(footprint.family(self.pid))
        wanted = os.fsencode(self.socket)
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) not in found:
                try:
                    arguments = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if wanted in arguments and int(entry.name) != os.getpid():
                    found.update(footprint.family(int(entry.name)))
        return found


def machine_cpu_s() -> float:
    """Seconds that all processors together were not idle since the boot, in ticks."""
    user, nice, system, _idle, _iowait, *interrupts = Path("/proc/stat").read_text().split()[1:9]
    busy = sum(map(int, (user, nice, system, *interrupts[:2])))
    return busy / os.sysconf("SC_CLK_TCK")


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with what every benchmark takes: other servers, and the form of its output.

    Raises: SystemExit after `--write-image`, which measures nothing.
    """
    parser.add_argument(
        "--beside",
        metavar="NAME=SOCKET",
        type=_named_socket,
        action="append",
        default=[],
        help="another CRI server to measure by turns; may be given several times",
    )
    parser.add_argument(
        "--write-image",
        metavar="FILE",
        type=Path,
        help=f"write the archive of {IMAGE}, for another server to load, and measure nothing",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.write_image:
        write_image(options.write_image)
        raise SystemExit(0)
    return options


def write_image(file: Path) -> None:
    """The archive that `--write-image` asks for."""
    file.write_bytes(busybox_archive(IMAGE))


@contextmanager
def beside(named: Sequence[tuple[str, Path]], work_dir: Path) -> Iterator[list[Server]]:
    """The servers of these names and sockets, without pods of the benchmarks before and after the block.

    Raises: SystemExit with a sentence when one does not answer or lacks the image.
    """
    servers: list[Server] = []
    try:
        for name, path in named:
            client = Client(path, log_dir=work_dir / f"logs-{name}")
            try:
                server = Server(name, client, _listener(path), path)
            except OSError as error:
                raise SystemExit(f"--beside {name}={path}: {error.strerror}") from error
            servers.append(server)
            if client.image_id(IMAGE) is None:
                raise SystemExit(f"{name} has no image {IMAGE}: see --write-image")
            server.remove_pods()
        yield servers
    finally:
        for server in servers:
            server.remove_pods()
            server.client.close()


def _named_socket(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path) or name == OURS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=SOCKET, with a name other than {OURS}"
        )
    return name, Path(path.removeprefix("unix://"))


def _listener(path: Path) -> int:
    """Who listens on a socket: SO_PEERCRED of unix(7)."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.fspath(path))
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid
