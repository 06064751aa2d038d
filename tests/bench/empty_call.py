"""What a call costs that does nothing: in the daemon, and in servers that are nothing else. The limit of every call.

    python -m tests.bench.empty_call [--rounds 300] [--beside NAME=SOCKET ...] [--json]

By turns, some calls each: `Version` of the daemon and of the servers that are named (`servers.py`); the same of a
server of a few lines on `grpc.aio`, with the message's bytes ready; and 20 bytes there and back through a socket of an
asyncio loop, without any gRPC: what a sleeping process takes to be woken and to answer. Each by the clock and as
processor time of the server's process, one right after the other and 10 ms after the one before, as the calls of a
pod's life are. Needs root and what `tests/run.sh` installs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from cri_shim import event_loop
from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.bench import servers
from tests.bench.pod import beside_floor, ours
from tests.harness.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

GAPS_S = (0.0, 0.01)
SERVICE, METHOD = "runtime.v1.RuntimeService", "Version"
IN_A_ROW = 20
MESSAGE = b"x" * 20
READY_S = 20.0


@dataclass
class Called:
    """One server, and what its calls took."""

    name: str
    pid: int
    call: Callable[[], object]
    seconds: dict[float, list[float]] = field(default_factory=dict)
    cpu_s: dict[float, list[float]] = field(default_factory=dict)

    def once(self, gap_s: float) -> None:
        """One call, that long after the one before."""
        clock = (~self.pid << 3) | 2  # clock_getcpuclockid(3)
        if gap_s:
            time.sleep(gap_s)
        cpu, started = time.clock_gettime(clock), time.perf_counter()
        self.call()
        self.seconds.setdefault(gap_s, []).append(time.perf_counter() - started)
        # What follows the answer counts with the next call.
        self.cpu_s.setdefault(gap_s, []).append(time.clock_gettime(clock) - cpu)

    def row(self) -> dict[str, Any]:
        """Medians in milliseconds, by gap."""
        found: dict[str, Any] = {"server": self.name}
        for gap_s in GAPS_S:
            found[f"ms_after_{gap_s * 1000:g}_ms"] = _median_ms(self.seconds[gap_s])
            found[f"cpu_ms_after_{gap_s * 1000:g}_ms"] = _median_ms(self.cpu_s[gap_s])
        return found


def _median_ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1000, 3)


async def serve_grpc(path: Path) -> None:
    """A server that is nothing but `grpc.aio`."""
    answer = api.VersionResponse(version="0.1.0", runtime_name="bare").SerializeToString()

    async def version(_request: bytes, _context: object) -> bytes:
        return answer

    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(version)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


async def serve_bytes(path: Path) -> None:
    """A server that gives back what it reads."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)

    async with await asyncio.start_unix_server(echo, path) as server:
        await server.serve_forever()


SERVERS = {"grpc.aio alone": serve_grpc, "a socket alone": serve_bytes}


def start(name: str, work_dir: Path, stack: ExitStack) -> Called:
    """One of `SERVERS`, in a process of its own that ends with the stack."""
    path = work_dir / f"{list(SERVERS).index(name)}.sock"
    command = [sys.executable, "-m", "tests.bench.empty_call", "--serve", name, str(path)]
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command])
    stack.callback(process.wait)
    stack.callback(process.kill)
    deadline = time.monotonic() + READY_S
    connection = socket.socket(socket.AF_UNIX)
    while True:
        try:
            connection.connect(str(path))
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    if name != "a socket alone":
        connection.close()
        client = stack.enter_context(Client(path, log_dir=work_dir))
        return Called(name, process.pid, partial(client.runtime.Version, api.VersionRequest()))
    stack.callback(connection.close)

    def there_and_back() -> None:
        connection.sendall(MESSAGE)
        connection.recv(4096)

    return Called(name, process.pid, there_and_back)


def main() -> int:
    """Measure and print; 0 always: a table, not a gate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "SOCKET"), help=argparse.SUPPRESS)
    options = servers.parse_options(parser)
    if options.serve:
        name, path = options.serve
        event_loop.run(SERVERS[name](Path(path)))
        return 0
    with ExitStack() as stack:
        daemon, floor = stack.enter_context(beside_floor())
        others = stack.enter_context(servers.beside(options.beside, floor.work_dir))
        called = [
            Called(each.name, each.pid, partial(each.client.runtime.Version, api.VersionRequest()))
            for each in (ours(daemon), *others)
        ]
        called += [start(name, floor.work_dir, stack) for name in SERVERS]
        for gap_s in GAPS_S:
            for _ in range(0, options.rounds, IN_A_ROW):
                for each in called:
                    for _ in range(IN_A_ROW):
                        each.once(gap_s)
    rows = [each.row() for each in called]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    heads = ("server", *(f"{what}, {gap * 1000:g} ms" for gap in GAPS_S for what in ("ms", "cpu")))
    print(("{:<18}" + "{:>12}" * 4).format(*heads) + f"   (medians of {options.rounds})")
    for row in rows:
        print(("{:<18}" + "{:>12}" * 4).format(*row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
