"""Clients that break every rule, over real sockets: an error and a closed connection, at a bounded price.

What the parsers make of such bytes is tested and fuzzed without sockets; here it is the server around them.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from cri_shim.streaming.newcomers import MAX_NEWCOMERS
from tests.harness.slowness import SLOWNESS
from tests.harness.streaming_sessions import PORT_FORWARD, SPDY, WEBSOCKET, request_head
from tests.integration.scene import wait_until
from tests.integration.streaming.footprint import Footprint, assert_no_growth, sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.daemon import Daemon
    from tests.harness.streaming_sessions import Protocol
    from tests.integration.scene import Pod

pytestmark = pytest.mark.integration

SOON_S = 5.0 * SLOWNESS
HEAD_TIMEOUT_S = 10.0
TICKET_S = 60.0
MEMORY_MIB = 8.0
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@pytest.fixture(autouse=True)
def no_growth(daemon: Daemon, container: str) -> Iterator[None]:
    """Whatever a client does here, nothing of it stays."""
    before = Footprint.of(daemon)
    yield
    assert_no_growth(daemon, before, memory_mib=MEMORY_MIB)


def dial(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=SOON_S)


def answer(client: socket.socket) -> bytes:
    """All that the server says until it hangs up, which must be soon."""
    said = b""
    while data := client.recv(1 << 16):
        said += data
    return said


def is_hung_up(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def status_of(url: str, head: bytes) -> int:
    with dial(url) as client:
        client.sendall(head)
        said = answer(client)
    match = _STATUS.match(said)
    assert match is not None, said[:200]
    return int(match[1])


def exec_url(pod: Pod, container: str) -> str:
    return pod.client.exec_url(container, "cat", stdin=True)  # it ends with its client


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00" + bytes(200), 400),  # TLS, to a server without
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /exec HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\r\n", 404),
        (b"GET /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /exec/x HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (64 << 10), 431),
        (b"GET /" + b"a" * (64 << 10), 431),
        (b"X: y\r\n" * 4000, 431),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_request_that_is_none_is_answered_and_hung_up(
    pod: Pod, container: str, head: bytes, status: int
) -> None:
    assert status_of(exec_url(pod, container), head) == status


@pytest.mark.parametrize("protocol", [SPDY, WEBSOCKET], ids=str)
def test_tickets_are_good_once_and_for_what_they_were_given_out_for(
    pod: Pod, container: str, protocol: Protocol
) -> None:
    url = exec_url(pod, container)
    base, _, token = url.rpartition("/")
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for stranger in (f"{base}/{wrong}", f"{base}/", f"{base}/{token}/x", f"{base}/../{token}"):
        assert status_of(stranger, request_head(stranger, protocol)) == 404
    attach = url.replace("/exec/", "/attach/")
    assert status_of(attach, request_head(attach, protocol)) == 404
    forward = url.replace("/exec/", "/portforward/")
    assert status_of(forward, request_head(forward, PORT_FORWARD[0])) == 404
    with dial(url) as client:
        client.sendall(request_head(url, protocol))
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
        assert status_of(url, request_head(url, protocol)) == 404


GARBAGE = (
    bytes(1 << 20),
    b"\xff" * (1 << 20),
    os.urandom(1 << 20),
    b"GET / HTTP/1.1\r\n\r\n" * (1 << 16),
)


def test_garbage_behind_the_upgrade_ends_the_session(pod: Pod, container: str) -> None:
    for protocol, garbage in product((SPDY, WEBSOCKET, *PORT_FORWARD[:3]), GARBAGE):
        is_forward = protocol in PORT_FORWARD
        url = pod.client.port_forward_url(pod.id, 9) if is_forward else exec_url(pod, container)
        with dial(url) as client:
            try:
                client.sendall(request_head(url, protocol) + garbage)
                client.shutdown(socket.SHUT_WR)
                said = answer(client)
            except (ConnectionResetError, BrokenPipeError):
                continue  # it hung up on the rest, which is an answer, too
        assert said.startswith(b"HTTP/1.1 101 "), (protocol, garbage[:20])


def test_clients_that_dawdle_over_their_request_are_few_and_hold_up_no_other(
    daemon: Daemon, pod: Pod, container: str
) -> None:
    url = exec_url(pod, container)
    before = Footprint.of(daemon)
    with ExitStack() as stack:
        dawdlers = [stack.enter_context(dial(url)) for _ in range(MAX_NEWCOMERS + 50)]
        for client in dawdlers:
            client.sendall(b"GET /exec/x HTTP/1.1\r\nHost:")
        assert status_of(url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == 404
        with dial(url) as client:
            client.sendall(request_head(url, SPDY))
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
            wait_until(lambda: sessions(daemon) == before.sessions + 1)
        held = Footprint.of(daemon).descriptors["socket"] - before.descriptors["socket"]
        assert held <= MAX_NEWCOMERS + 2, "the oldest make room"
        assert is_hung_up(dawdlers[0])
        assert not is_hung_up(dawdlers[-1])


FLOOD = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
kept = []
print("on", flush=True)
while True:
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", int(sys.argv[1])))
    kept.append(client)
    if len(kept) == 3000:
        for old in kept[:1000]:
            old.close()
        del kept[:1000]
    time.sleep(0.0002)
"""
"""More connections in a second than there is room for, none of which ever says a word."""


def test_a_flood_of_silent_clients_keeps_nobody_out_who_knows_what_it_wants(
    daemon: Daemon, pod: Pod, container: str
) -> None:
    port = str(urlsplit(exec_url(pod, container)).port)
    with subprocess.Popen([sys.executable, "-c", FLOOD, port], stdout=subprocess.PIPE) as flood:
        try:
            assert flood.stdout is not None
            assert flood.stdout.readline() == b"on\n"
            wait_until(lambda: Footprint.of(daemon).descriptors["socket"] > MAX_NEWCOMERS)
            for _ in range(4):
                url = exec_url(pod, container)
                with dial_through(url) as client:
                    time.sleep(0.1)  # somebody who is not quick
                    client.sendall(request_head(url, SPDY))
                    assert client.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
        finally:
            flood.kill()


def dial_through(url: str) -> socket.socket:
    """As clients do, whose first packet may find the queue full: again, within the life of a ticket."""
    parts = urlsplit(url)
    deadline = time.monotonic() + TICKET_S
    while True:
        try:
            return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=2)
        except TimeoutError:
            assert time.monotonic() < deadline


@pytest.mark.slow
def test_client_that_dawdles_over_its_request_is_told_and_hung_up(pod: Pod, container: str) -> None:
    url = exec_url(pod, container)
    with dial(url) as client:
        client.settimeout(HEAD_TIMEOUT_S + SOON_S)
        started = time.monotonic()
        client.sendall(b"GET /exec/x HTTP/1.1\r\nHost:")
        assert _STATUS.match(answer(client))
        assert HEAD_TIMEOUT_S - 1 < time.monotonic() - started < HEAD_TIMEOUT_S + SOON_S
