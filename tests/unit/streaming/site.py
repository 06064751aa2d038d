"""A streaming server in a thread of its own, with this machine behind it, for clients with ordinary sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cri_shim.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from cri_shim.streaming.meter import Meter
from cri_shim.streaming.server import StreamingServer
from cri_shim.streaming.session import Limits
from cri_shim.streaming.tickets import Tickets
from tests.fakes.clock import turn_over
from tests.fakes.stream_backend import LocalBackend
from tests.harness.streaming_client import PortForwardClient, RemoteCommandClient

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from cri_shim.streaming.tls import ServerTls
    from tests.fakes.clock import MovableClock


class LoopThread:
    """A thread with an event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="streaming")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


class Site:
    """What a test sees of it."""

    def __init__(self, limits: Limits, tls: ServerTls | None, address: str, prefix: str) -> None:
        self.tickets = Tickets(60)
        self.backend = LocalBackend(self.tickets)
        self.told: list[tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]]] = []
        self.server = StreamingServer(
            self.backend,
            limits,
            Meter(lambda now, more: self.told.append((now, more))),
            tls=tls,
            path_prefix=prefix,
        )
        # A wildcard of IPv6 takes IPv4 as well.
        self.listener = socket.create_server(
            (address, 0),
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            dualstack_ipv6=address == "::",
        )
        self.thread = LoopThread()  # last: a loop has sockets of its own, which only its end closes
        self.port: int = self.listener.getsockname()[1]
        self._scheme = "http" if tls is None else "https"
        self._host = f"[{address}]" if ":" in address else address
        self._prefix = prefix

    async def start(self) -> None:
        self.server.start(self.listener)

    def await_(self, work: Coroutine[object, object, None], timeout_s: float = 30.0) -> None:
        """Do it on the server's loop."""
        asyncio.run_coroutine_threadsafe(work, self.thread.loop).result(timeout_s)

    def let_pass(self, clock: MovableClock, seconds: float) -> None:
        """Move the clock, and have the server's loop see it: what is due by then has been done on return."""
        clock.move(seconds)
        self.await_(turn_over())

    @property
    def base(self) -> str:
        return f"{self._scheme}://{self._host}:{self.port}{self._prefix}"

    def exec_url(
        self,
        *command: str,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool = False,
        container: str = "c",
    ) -> str:
        request = ExecRequest(container, command, stdin, stdout, stderr, tty)
        return f"{self.base}/exec/{self.tickets.issue(request)}"

    def attach_url(self) -> str:
        request = AttachRequest("c", stdin=False, stdout=True, stderr=True, tty=False)
        return f"{self.base}/attach/{self.tickets.issue(request)}"

    def forward_url(self, *ports: int, sandbox: str = "s") -> str:
        return f"{self.base}/portforward/{self.tickets.issue(PortForwardRequest(sandbox, tuple(ports)))}"

    def exec(
        self,
        *command: str,
        transport: str = "spdy",
        protocol: str = "v4.channel.k8s.io",
        stdin: bool = False,
        tty: bool = False,
    ) -> RemoteCommandClient:
        url = self.exec_url(*command, stdin=stdin, stderr=not tty, tty=tty)
        return RemoteCommandClient(url, transport, protocol=protocol, stdin=stdin, tty=tty)

    def forward(self, *ports: int, transport: str = "spdy") -> PortForwardClient:
        return PortForwardClient(self.forward_url(*ports), transport)

    @property
    def sessions(self) -> int:
        return len(self.server.sessions)


@contextmanager
def site(
    *,
    limits: Limits | None = None,
    tls: ServerTls | None = None,
    address: str = "127.0.0.1",
    prefix: str = "",
) -> Iterator[Site]:
    made = Site(limits or Limits(10, 3600), tls, address, prefix)
    made.thread.start()
    try:
        made.await_(made.start())
        yield made
    finally:
        try:
            made.await_(made.server.stop(1.0))
        finally:
            made.backend.close()
            made.thread.stop()
