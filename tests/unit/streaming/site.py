"""A streaming server in a thread of its own, with this machine behind it, for clients with ordinary sockets."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cri_shim.host.loop_thread import LoopThread
from cri_shim.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from cri_shim.streaming.server import StreamingServer
from cri_shim.streaming.session import Limits
from cri_shim.streaming.tickets import Tickets
from tests.fakes.stream_backend import LocalBackend
from tests.harness.streaming_client import PortForwardClient, RemoteCommandClient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from cri_shim.streaming.tls import ServerTls


class Site:
    """What a test sees of it."""

    def __init__(self, limits: Limits, tls: ServerTls | None, address: str, prefix: str) -> None:
        self.tickets = Tickets(60)
        self.backend = LocalBackend()
        self.thread = LoopThread("streaming")
        self.server = StreamingServer(
            self.tickets, self.backend, limits, tls=tls, path_prefix=prefix
        )
        self._scheme = "http" if tls is None else "https"
        self._host = f"[{address}]" if ":" in address else address
        self._prefix = prefix

    def await_(self, work: Coroutine[object, object, None], timeout_s: float = 10.0) -> None:
        """Do it on the server's loop."""
        asyncio.run_coroutine_threadsafe(work, self.thread.loop).result(timeout_s)

    @property
    def base(self) -> str:
        return f"{self._scheme}://{self._host}:{self.server.port}{self._prefix}"

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
        return len(self.server._sessions)


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
        made.await_(made.server.start(address, 0))
        yield made
    finally:
        made.await_(made.server.stop(1.0))
        made.backend.close()
        asyncio.run(made.thread.stop())


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)
