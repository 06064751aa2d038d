"""Attacks by clients of the streaming server."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cri_shim.host.namespaces import run_in_netns
from cri_shim.streaming.wire import spdy_frames as frames
from cri_shim.streaming.wire.spdy import SpdyConnection
from tests.harness.streaming_client import SPDY_PORT_FORWARD, dial, spdy_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.tenants.tenant import Tenant
    from tests.integration.scene import Pod

CONTROL = 0x80000000 | frames.VERSION << 16
FRAMES_AT_ONCE = 4096
SMALL_BUFFER_BYTES = 4096
BOMB_BYTES = 63 << 10
BOMBS_AT_ONCE = 1000
RESETS_AT_ONCE = 500
CONNECTIONS = 600
WAIT_S = 0.05


@contextmanager
def deaf_listener(pod: Pod) -> Iterator[int]:
    """Takes connections in the pod's network and never reads; its port."""

    def listen() -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        return listener

    with run_in_netns(pod.netns, listen) as listener:
        port: int = listener.getsockname()[1]
        yield port


@contextmanager
def _port_forward(tenant: Tenant, pod: Pod) -> Iterator[tuple[socket.socket, SpdyConnection]]:
    url = tenant.client.port_forward_url(pod.id)
    sock, _ = dial(url, spdy_headers(SPDY_PORT_FORWARD), method="POST")
    with sock:
        yield sock, SpdyConnection(client=True)


def _pour(tenant: Tenant, sock: socket.socket, more: Callable[[], bytes]) -> int:
    """Send what `more` gives as fast as it is taken, and read what comes, while there is time; how many bytes.

    A server that hangs up has refused: it is not called again.
    """
    sock.setblocking(False)
    sent, rest = 0, memoryview(b"")
    while tenant.goes_on():
        with suppress(BlockingIOError):
            while sock.recv(1 << 20):
                pass
            return sent
        rest = rest or memoryview(more())
        try:
            n_sent = sock.send(rest)
        except BlockingIOError:
            time.sleep(WAIT_S)
            continue
        sent += n_sent
        rest = rest[n_sent:]
    return sent


def _until_refused(tenant: Tenant, attack: Callable[[], None]) -> None:
    """Come again after each refusal."""
    while tenant.goes_on():
        with suppress(OSError):
            attack()
        time.sleep(WAIT_S)


def data_byte_by_byte(tenant: Tenant) -> None:
    """A port-forward to somebody who doesn't read, in frames of one byte."""
    pod = tenant.pod()
    with deaf_listener(pod) as port:
        tenant.begin()

        def attack() -> None:
            with _port_forward(tenant, pod) as (sock, machine):
                headers = {"port": str(port), "requestid": "0"}
                machine.end(machine.open_stream({"streamtype": "error", **headers}))
                stream_id = machine.open_stream({"streamtype": "data", **headers})
                sock.sendall(b"".join(machine.data_to_send()))
                small = frames.WORDS.pack(stream_id, 1) + b"x"
                _pour(tenant, sock, lambda: small * FRAMES_AT_ONCE)

        _until_refused(tenant, attack)


def headers_that_inflate(tenant: Tenant) -> None:
    """Header blocks of some hundred bytes that are 64 KiB of text."""
    pod = tenant.pod()
    tenant.begin()

    def attack() -> None:
        with _port_forward(tenant, pod) as (sock, machine):
            for _ in range(4):  # from then on the compression says the same each time
                machine.open_stream({"streamtype": "x" * BOMB_BYTES})
                taken = b"".join(machine.data_to_send())
                sock.sendall(taken)
            block, first_id = taken[18:], 9

            def bombs() -> bytes:
                nonlocal first_id
                ids = range(first_id, first_id + 2 * BOMBS_AT_ONCE, 2)
                first_id = ids.stop
                return b"".join(_syn_stream(stream_id, block) for stream_id in ids)

            _pour(tenant, sock, bombs)

    _until_refused(tenant, attack)


def rapid_resets(tenant: Tenant) -> None:
    """Connections that are asked for and given up at once."""
    pod = tenant.pod()
    with deaf_listener(pod) as port:
        tenant.begin()
        number = 0

        def attack() -> None:
            with _port_forward(tenant, pod) as (sock, machine):

                def more() -> bytes:
                    nonlocal number
                    for _ in range(RESETS_AT_ONCE):
                        number += 1
                        headers = {"port": str(port), "requestid": str(number)}
                        pair = [
                            machine.open_stream({"streamtype": t, **headers})
                            for t in ("error", "data")
                        ]
                        for stream_id in pair:
                            machine.reset(stream_id)
                    return b"".join(machine.data_to_send())

                _pour(tenant, sock, more)

        _until_refused(tenant, attack)


def connections_that_ask_nothing(tenant: Tenant) -> None:
    """Hundreds of connections with half a request, and new ones for those that are ended."""
    pod = tenant.pod()
    where = urlsplit(tenant.client.port_forward_url(pod.id))
    assert where.hostname is not None
    address = (where.hostname, where.port or 80)
    connections: list[socket.socket] = []
    tenant.begin()
    try:
        while tenant.goes_on():
            with suppress(OSError):
                connection = socket.create_connection(address, timeout=1)
                connections.append(connection)
                connection.sendall(b"POST /portforward HTTP/1.1\r\nHost: ")
            if len(connections) >= CONNECTIONS:
                connections.pop(0).close()
    finally:
        for connection in connections:
            connection.close()


def _syn_stream(stream_id: int, block: bytes) -> bytes:
    head = frames.WORDS.pack(CONTROL | frames.FrameType.SYN_STREAM, len(block) + 10)
    return head + struct.pack(">IIH", stream_id, 0, 0) + block
