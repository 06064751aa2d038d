"""The streaming process: the server for the clients of Exec, Attach and PortForward, apart from the daemon.

    python -m cri_shim.streamer.process SOCKET_FD

Rules:
- It is a process of its own for two reasons. Streams at full rate must not delay the daemon's other calls. And what
  clients send is parsed here, in a process without capabilities, which can ask the daemon only for what tickets permit
  (`streaming/ipc`).
- The server bounds its memory. If that fails, the kernel's limit ends the process; it is then replaced, and the node
  goes on.
- It lives and dies with the daemon, which sends `Setup` first and `Stop` last.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cri_shim import event_loop
from cri_shim import log as logging_setup
from cri_shim.errors import CriShimError
from cri_shim.host import confine
from cri_shim.host.confine import Capability
from cri_shim.host.packets import Packets, close_all
from cri_shim.streamer.backend_client import BackendClient
from cri_shim.streaming import ipc
from cri_shim.streaming.meter import Meter
from cri_shim.streaming.server import StreamingServer
from cri_shim.streaming.session import Limits
from cri_shim.streaming.tls import ServerTls

if TYPE_CHECKING:
    from collections.abc import Sequence

log = structlog.get_logger()
MAX_MEMORY_BYTES = 1536 << 20
"""One and a half times what `streaming` allows itself: 64 MiB, and one MiB for each of a thousand sessions."""
WITHOUT_MEMORY_STATUS = 70


class Streamer:
    """The state of the process: call `run`."""

    def __init__(self, connection: socket.socket) -> None:
        self._packets = Packets(connection, self._handle, self._daemon_gone)
        self._node = BackendClient(self._send)
        self._server: StreamingServer | None = None
        self._stopped: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve until the daemon sends `Stop` or dies."""
        grace_s = await self._stopped
        if self._server is not None:
            await self._server.stop(grace_s)
        self._packets.close()

    def _send(self, message: ipc.ToDaemon) -> None:
        self._packets.send(ipc.encode(message))

    def _handle(self, packet: bytes, descriptors: list[int]) -> None:
        message = ipc.decode_to_streamer(packet)
        match message:
            case ipc.Setup():
                self._set_up(message, descriptors)
            case ipc.LogLevel(level=level):
                logging_setup.set_level(level)
            case ipc.Ping():
                self._send(ipc.Pong())
            case ipc.Stop(grace_s=grace_s):
                self._end(grace_s)
            case _:
                self._node.handle(message, descriptors)

    def _daemon_gone(self) -> None:
        self._end(0.0)

    def _end(self, grace_s: float) -> None:
        if not self._stopped.done():
            self._stopped.set_result(grace_s)

    def _set_up(self, setup: ipc.Setup, descriptors: Sequence[int]) -> None:
        logging_setup.configure(level=setup.log_level, format=setup.log_format)
        try:
            tls = None
            if setup.tls_cert:
                client_ca = Path(setup.tls_client_ca) if setup.tls_client_ca else None
                tls = ServerTls(Path(setup.tls_cert), Path(setup.tls_key), client_ca)
            _confine(reads_keys=tls is not None)
        except (CriShimError, OSError) as error:
            close_all(descriptors)
            self._send(ipc.Broken(reason=ipc.bounded(str(error))))
            self._end(0.0)
            return
        self._server = StreamingServer(
            self._node,
            Limits(setup.creation_timeout_s, setup.idle_timeout_s),
            Meter(lambda now, more: self._send(ipc.Counted(sessions=now, carried=more))),
            tls=tls,
            path_prefix=setup.path_prefix,
        )
        [listener] = descriptors
        self._server.start(socket.socket(fileno=listener))
        # Everything allocated so far is permanent: exempt it from every later collection.
        gc.collect()
        gc.freeze()
        gc.collect()  # with a small base of live objects, later growth of a quarter triggers a full collection
        self._send(ipc.Ready())
        event_loop.tell_of_stalls(
            lambda wall_s, cpu_s: self._send(ipc.Stalled(wall_s=wall_s, cpu_s=cpu_s))
        )


def _confine(*, reads_keys: bool) -> None:
    """Drop root's privileges. With TLS, keep the right to read files of others, since keys are read again on change."""
    confine.raise_oom_score_adj(confine.HELPERS_OOM_SCORE_ADJ)
    confine.limit_data(MAX_MEMORY_BYTES)
    if os.geteuid() == 0:
        kept = (Capability.CAP_DAC_READ_SEARCH,) if reads_keys else ()
        confine.keep_capabilities(kept)
    confine.die_with_parent(os.getppid())


def end_without_memory(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler. It exits after a MemoryError, since nothing can be relied on then."""
    if isinstance(context.get("exception"), MemoryError):
        os._exit(WITHOUT_MEMORY_STATUS)
    loop.default_exception_handler(context)


async def _main(connection: socket.socket) -> None:
    asyncio.get_running_loop().set_exception_handler(end_without_memory)
    await Streamer(connection).run()


if __name__ == "__main__":
    event_loop.run(_main(socket.socket(fileno=int(sys.argv[1]))))
