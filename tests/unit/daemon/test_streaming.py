"""The real streaming process, as the daemon has it, with this machine behind it instead of containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from cri_shim.background import Background
from cri_shim.config.model import LogLevel, LogSettings, StreamingSettings, TlsSettings
from cri_shim.config.values import HttpUrl, IpAddress, Seconds
from cri_shim.daemon.streaming import (
    LONGEST_PAUSE_S,
    PING_INTERVAL_S,
    PINGS_UNANSWERED,
    Streaming,
    reachable,
)
from cri_shim.errors import ConfigError, UnavailableError
from cri_shim.host.process import Reaper
from cri_shim.streamer.process import MAX_MEMORY_BYTES, WITHOUT_MEMORY_STATUS
from cri_shim.streaming import ipc
from cri_shim.streaming.backend import ExecRequest, PortForwardRequest
from cri_shim.streaming.tickets import Tickets
from tests.fakes.clock import turn_over, until
from tests.fakes.local_stream_backend import LocalStreamBackend, descriptors_of
from tests.harness.streaming_client import PortForwardClient, RemoteCommandClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cri_shim.host.process import Child
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio
ANY_PORT = StreamingSettings(port=0)


class SpawningReaper(Reaper):
    """One that has no more processes for a while, or starts another program."""

    failures = 0
    """So many of the next ones can't be started."""
    first_program: str | None = None
    """What the next one runs instead of its own program."""

    def spawn(self, argv: Sequence[str], **options: Any) -> Child:
        if self.failures:
            self.failures -= 1
            raise OSError(11, "no more processes")
        program, self.first_program = self.first_program, None
        if program is not None:
            argv = [sys.executable, "-c", program, argv[-1]]
        return super().spawn(argv, **options)


class Node:
    def __init__(self, settings: StreamingSettings) -> None:
        self.reaper = SpawningReaper()
        self.background = Background()
        self.tickets = Tickets(settings.token_ttl_s)
        self.streaming = Streaming(
            settings,
            LogSettings(),
            tickets=self.tickets,
            reaper=self.reaper,
            background=self.background,
        )
        self.backend = LocalStreamBackend(self.tickets)

    @contextlib.asynccontextmanager
    async def reaping(self) -> AsyncIterator[None]:
        self.reaper.open()
        try:
            yield
        finally:
            await self.streaming.stop(1)
            await self.background.close(1)
            self.backend.backend.close()
            self.reaper.close()

    @property
    def pid(self) -> int:
        assert self.streaming.pid is not None
        return self.streaming.pid

    def url(self, *command: str) -> str:
        request = ExecRequest("c", command, stdin=False, stdout=True, stderr=True, tty=False)
        return f"{self.streaming.base_url()}/exec/{self.tickets.issue(request)}"

    async def run(self, *command: str) -> bytes:
        url = self.url(*command)

        def call() -> bytes:
            with RemoteCommandClient(url) as client:
                return client.until_closed().stdout

        return await asyncio.to_thread(call)


@contextlib.asynccontextmanager
async def started(settings: StreamingSettings = ANY_PORT) -> AsyncIterator[Node]:
    node = Node(settings)
    async with node.reaping():
        await node.streaming.start(node.backend)
        pid = node.pid
        yield node
    assert not Path(f"/proc/{pid}").exists()


async def test_the_url_is_where_it_listens() -> None:
    async with started() as node:
        base = node.streaming.base_url()
        assert base is not None
        assert base.startswith("http://127.0.0.1:")
        assert await node.run("echo", "hello") == b"hello\n"
    assert node.streaming.base_url() is None
    await node.streaming.stop(1)


def oom_score_adj(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_it_is_killed_before_the_daemon_when_memory_runs_out_and_has_a_bound_of_its_own() -> (
    None
):
    async with started() as node:
        assert oom_score_adj(node.pid) == max(oom_score_adj("self"), 0)
        limits = Path(f"/proc/{node.pid}/limits").read_text()
        [bound] = re.findall(r"^Max data size\s+(\d+)\s+(?:\1)\s", limits, re.MULTILINE)
        assert int(bound) == MAX_MEMORY_BYTES


async def test_without_memory_it_ends() -> None:
    program = (
        "import asyncio\n"
        "from cri_shim.streamer.process import end_without_memory\n"
        "loop = asyncio.new_event_loop()\n"
        "loop.set_exception_handler(end_without_memory)\n"
        "loop.call_soon(lambda: 1 / 0)\n"
        "loop.call_soon(lambda: bytearray(1 << 60))\n"
        "loop.run_forever()\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == WITHOUT_MEMORY_STATUS
    assert b"ZeroDivisionError" in said, "anything else is told as ever"


async def test_what_stands_in_front_is_what_clients_are_told() -> None:
    settings = replace(ANY_PORT, base_url=HttpUrl("https://proxy.example/node-1/"))
    async with started(settings) as node:
        assert node.streaming.base_url() == "https://proxy.example/node-1"


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
async def test_for_a_wildcard_clients_are_told_an_address_they_can_reach(address: str) -> None:
    async with started(replace(ANY_PORT, address=IpAddress(address))) as node:
        base = node.streaming.base_url()
        assert base is not None
        assert address not in base.split("//")[1].split(":")[0]
        assert await node.run("echo", "hello") == b"hello\n"


async def test_without_a_way_out_the_wildcard_is_reached_over_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    assert reachable("0.0.0.0") == "127.0.0.1"
    assert reachable("fd00::1") == "[fd00::1]"


async def test_a_port_that_is_taken_is_the_configurations_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = Node(replace(ANY_PORT, port=port))
        async with node.reaping():
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
                await node.streaming.start(node.backend)
    assert node.streaming.base_url() is None


async def test_what_its_process_cannot_serve_with_is_the_configurations_fault(
    tmp_path: Path,
) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).write_text("nonsense")
    tls = TlsSettings(cert=tmp_path / "cert", key=tmp_path / "key")
    node = Node(replace(ANY_PORT, tls=tls))
    async with node.reaping():
        with pytest.raises(ConfigError, match=r"streaming\.tls: .*cert"):
            await node.streaming.start(node.backend)
        assert node.streaming.pid is None
        assert node.backend.closed == node.backend.opened == 1


async def test_a_process_that_cannot_be_started_is_said() -> None:
    node = Node(ANY_PORT)
    node.reaper.failures = 1
    async with node.reaping():
        with pytest.raises(
            UnavailableError, match=r"cannot start the streaming process: .*processes"
        ):
            await node.streaming.start(node.backend)


async def test_it_has_no_capability_and_nothing_of_ours() -> None:
    async with started() as node:
        status = Path(f"/proc/{node.pid}/status").read_text()
        if os.geteuid() == 0:
            for kind in ("Prm", "Eff", "Inh", "Amb"):
                assert re.search(rf"^Cap{kind}:\s+0+$", status, re.MULTILINE), kind
            assert "NoNewPrivs:\t1" in status
        # Standard streams, the link, the listening socket, and what a loop has.
        assert descriptors_of(node.pid) <= 9
        environment = Path(f"/proc/{node.pid}/environ").read_bytes()
        assert b"HOME=" not in environment


async def test_another_takes_the_place_of_one_that_died_and_tickets_are_still_good() -> None:
    async with started() as node:
        base, pid = node.streaming.base_url(), node.pid
        url = node.url("echo", "still good")
        os.kill(pid, signal.SIGKILL)
        # The client comes before the new one is there, and waits.
        with await asyncio.to_thread(RemoteCommandClient, url) as client:
            done = await asyncio.to_thread(client.until_closed)
        assert done.stdout == b"still good\n"
        assert node.streaming.base_url() == base
        assert node.pid != pid
        assert (node.backend.opened, node.backend.closed) == (2, 1)


async def test_one_that_does_not_answer_is_replaced(clock: MovableClock) -> None:
    async with started() as node:
        pid, streaming = node.pid, node.streaming
        for _ in range(2 * PINGS_UNANSWERED):
            clock.move(PING_INTERVAL_S)
            await turn_over()  # it is asked
            await until(lambda: streaming.unanswered_pings == 0)
        assert node.backend.opened == 1
        os.kill(pid, signal.SIGSTOP)
        for unanswered in range(1, PINGS_UNANSWERED + 1):
            assert node.backend.closed == 0
            clock.move(PING_INTERVAL_S)
            await until(lambda unanswered=unanswered: streaming.unanswered_pings == unanswered)  # type: ignore[misc]
        clock.move(PING_INTERVAL_S)
        await until(lambda: node.pid != pid)
        assert await node.run("echo", "hello") == b"hello\n"


async def test_one_that_makes_no_sense_is_replaced() -> None:
    node = Node(ANY_PORT)
    node.reaper.first_program = (
        "import socket, sys\n"
        "link = socket.socket(fileno=int(sys.argv[1]))\n"
        "link.recv(65536)\n"
        f"link.send({ipc.encode(ipc.Ready())!r})\n"
        "link.recv(65536)\n"
        "link.send(b'nonsense')\n"
        "link.recv(65536)\n"
    )
    async with node.reaping():
        await node.streaming.start(node.backend)
        pid = node.pid
        node.streaming.reconfigure(ANY_PORT, LogSettings())
        await until(lambda: node.pid != pid)
        assert await node.run("echo", "hello") == b"hello\n"


async def test_it_is_tried_again_until_there_is_one(clock: MovableClock) -> None:
    async with started() as node:
        pid = node.pid
        node.reaper.failures = 3
        os.kill(pid, signal.SIGKILL)
        await until(lambda: node.backend.closed)
        await clock.until(lambda: node.reaper.failures == 0, within_s=LONGEST_PAUSE_S)
        await until(lambda: node.pid != pid)
        assert await node.run("echo", "hello") == b"hello\n"


async def test_stopping_while_there_is_none_ends_it_all() -> None:
    async with started() as node:
        node.reaper.failures = sys.maxsize
        os.kill(node.pid, signal.SIGKILL)
        await until(lambda: node.backend.closed)
        await node.streaming.stop(1)
        assert node.streaming.base_url() is None
        await node.background.close(1)
        assert node.backend.opened == 1


async def test_its_clients_are_told_at_the_end_and_one_that_hangs_is_killed() -> None:
    async with started() as node:
        url = node.url("sleep", "60")
        with await asyncio.to_thread(RemoteCommandClient, url) as client:
            await until(lambda: node.backend.backend.processes)
            await node.streaming.stop(1)
            done = await asyncio.to_thread(client.until_closed)
        assert "shutting down" in done.status["message"]
    async with started() as node:
        os.kill(node.pid, signal.SIGSTOP)
        await node.streaming.stop(0.1)


async def test_a_port_forward_gets_its_sockets_from_the_node() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = target.getsockname()[1]
        async with started() as node:
            token = node.tickets.issue(PortForwardRequest("s", (port,)))
            url = f"{node.streaming.base_url()}/portforward/{token}"

            def talk() -> bytes:
                with PortForwardClient(url) as client:
                    connection = client.connect(port)
                    served, _ = target.accept()
                    with served:
                        served.sendall(b"from the pod")
                        client.until(lambda: client.received[connection])
                        return bytes(client.received[connection])

            assert await asyncio.to_thread(talk) == b"from the pod"
            await until(lambda: any(isinstance(a, ipc.Leave) for a in node.backend.messages))
            asked = [a for a in node.backend.messages if isinstance(a, ipc.MakeSockets)]
            assert asked[0].family == socket.AF_INET


async def test_a_reload_changes_the_time_of_new_tickets_and_the_level() -> None:
    async with started() as node:
        log_settings = LogSettings(level=LogLevel.DEBUG)
        node.streaming.reconfigure(replace(ANY_PORT, token_ttl_s=Seconds(5)), log_settings)
        assert node.tickets.ttl_s == 5
        assert await node.run("echo", "hello") == b"hello\n"
