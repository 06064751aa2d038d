"""Port-forwards through a real server to listeners of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from cri_shim.streaming import port_forward
from cri_shim.streaming.session import Limits
from cri_shim.streaming.wire import spdy_frames as frames
from tests.fakes.clock import block_until
from tests.harness.streaming_client import ChannelPairsClient, PortForwardClient, RefusedError
from tests.unit.streaming.site import site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.clock import MovableClock

IDLE_S = 3600.0
BOTH = pytest.mark.parametrize("transport", ["spdy", "websocket"])


@contextlib.contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serves each connection in a thread; the port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    threads: list[threading.Thread] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listening.accept()
                threads.append(threading.Thread(target=one, args=(sock,)))
                threads[-1].start()

    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            serve(sock)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()
        for thread in threads:
            thread.join(10)


def digest_of_all(sock: socket.socket) -> None:
    """Reads to the end, and only then answers."""
    digest = hashlib.sha256()
    while data := sock.recv(65536):
        digest.update(data)
    sock.sendall(digest.digest())


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@BOTH
def test_both_halves_of_a_connection_end_on_their_own(transport: str) -> None:
    sent = os.urandom(2_000_000)
    with site() as node, listener(digest_of_all) as port, node.forward(transport=transport) as c:
        assert c.ask(port, sent) == hashlib.sha256(sent).digest()
        assert c.ask(port, b"") == hashlib.sha256().digest()  # the session goes on


@BOTH
def test_a_target_that_ends_first_is_still_heard(transport: str) -> None:
    def speak(sock: socket.socket) -> None:
        sock.sendall(b"x" * 1_000_000)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(10) == b"thanks"

    with site() as node, listener(speak) as port, node.forward(transport=transport) as client:
        connection = client.connect(port)
        client.until(lambda: connection in client.ended)
        assert len(client.received[connection]) == 1_000_000
        client.write(connection, b"thanks")
        client.end(connection)
        assert client.ask(port, b"thanks") == b"x" * 1_000_000


def test_where_nobody_listens_the_error_stream_says_so_and_the_others_live() -> None:
    with site() as node, listener(echo) as port, node.forward() as client:
        lives = client.connect(port)
        dead = client.connect(free_port())
        client.until(lambda: client.is_over(dead))
        assert b"refused" in client.errors[dead]
        client.write(lives, b"still")
        client.until(lambda: client.received[lives] == b"still")
        assert client.errors[lives] == b""


def test_a_reset_by_the_target_is_a_reset_without_words() -> None:
    def reset(sock: socket.socket) -> None:
        sock.recv(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with site() as node, listener(reset) as bad, listener(echo) as good, node.forward() as client:
        lives, dies = client.connect(good), client.connect(bad)
        client.write(dies, b"please")
        client.until(lambda: client.is_over(dies))
        assert dies in client.reset
        assert client.errors[dies] == b""
        client.write(lives, b"hello")
        client.until(lambda: client.received[lives] == b"hello")


def test_a_reset_by_the_client_drops_that_connection_only() -> None:
    begun, ended = threading.Event(), threading.Event()

    def note(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.recv(100):
                begun.set()
        ended.set()

    with site() as node, listener(note) as port, listener(echo) as good, node.forward() as client:
        lives, dies = client.connect(good), client.connect(port)
        client.write(dies, b"x")
        assert begun.wait(5)
        client.give_up(dies)
        assert ended.wait(5)
        client.write(lives, b"hello")
        client.until(lambda: client.received[lives] == b"hello")


@BOTH
def test_hundreds_of_short_connections_some_of_them_reset(transport: str) -> None:
    with site() as node, listener(digest_of_all) as port, node.forward(transport=transport) as c:
        asked: dict[int, bytes] = {}
        for number in range(300):
            connection = c.connect(port)
            data = b"%d" % number * 50
            c.write(connection, data)
            if number % 7 == 3:
                c.give_up(connection)
            else:
                c.end(connection)
                asked[connection] = hashlib.sha256(data).digest()
        c.until(lambda: all(map(c.is_over, asked)))
        assert all(c.received[connection] == asked[connection] for connection in asked)
        [session] = node.server.sessions
        block_until(lambda: not session.targets)  # type: ignore[attr-defined]


def test_a_client_that_does_not_read_is_waited_for_without_hoarding() -> None:
    def flood(sock: socket.socket) -> None:
        while True:
            sock.sendall(bytes(1 << 20))

    with site() as node, listener(flood) as port, node.forward() as client:
        connections = [client.connect(port) for _ in range(4)]
        block_until(lambda: node.server.sessions and node.server.sessions[0].unsent)
        [session] = node.server.sessions
        assert session.unsent < 2 << 20
        client.until(lambda: all(len(client.received[c]) > 1 << 20 for c in connections))


def test_a_target_that_takes_nothing_is_given_up_so_that_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(port_forward, "TARGET_STALL_S", 0.3)
    release = threading.Event()

    def hold(_sock: socket.socket) -> None:
        release.wait(10)

    with site() as node, listener(echo) as good, node.forward() as client:
        with listener(hold) as port:
            stuck = client.connect(port)
            lives = client.connect(good)
            client.write(stuck, bytes(16 << 20))
            client.write(lives, b"hello")
            client.until(lambda: client.received[lives] == b"hello")
            assert stuck in client.reset
            release.set()


def test_only_the_ports_of_the_request_can_be_reached() -> None:
    with site() as node, listener(echo) as port, listener(echo) as other:
        with node.forward(port) as client:
            refused = client.connect(other)
            client.until(lambda: client.is_over(refused))
            assert b"was not requested" in client.errors[refused]
            lives = client.connect(port)
            client.write(lives, b"hello")
            client.until(lambda: client.received[lives] == b"hello")


def test_pairs_of_channels_carry_the_ports_of_the_request() -> None:
    with site() as node, listener(echo) as port, listener(echo) as other:
        with ChannelPairsClient(node.forward_url(port, other)) as client:
            client.write(0, b"one")
            client.write(2, b"two")
            wanted = {0: b"one", 2: b"two"}
            client.until(
                lambda: all(client.received.get(c, b"")[2:] == data for c, data in wanted.items())
            )
            assert client.received[0][:2] == port.to_bytes(2, "little")


def test_pairs_of_channels_take_their_ports_from_the_url_when_the_request_has_none() -> None:
    with site() as node, listener(echo) as port:
        with ChannelPairsClient(f"{node.forward_url()}?port={port}") as client:
            client.write(0, b"one")
            client.until(lambda: client.received.get(0, b"")[2:] == b"one")
        for query in ("", "?port=0", "?ports=x"):
            with pytest.raises(RefusedError) as refused:
                ChannelPairsClient(node.forward_url() + query)
            assert refused.value.status == 400


def test_a_session_of_channels_ends_with_its_last_connection() -> None:
    def hello(sock: socket.socket) -> None:
        sock.sendall(b"hello")

    with site() as node, listener(hello) as port:
        with ChannelPairsClient(node.forward_url(port)) as client:
            client.until_closed()
            assert client.received[0][2:] == b"hello"
        block_until(lambda: node.sessions == 0)


def test_half_of_a_pair_is_not_waited_for_forever() -> None:
    with site(limits=Limits(0.2, 60)) as node, node.forward() as client:
        stream = client.machine.open_stream({"streamtype": "data", "port": "1", "requestid": "9"})
        client.received[stream] = bytearray()
        client.flush()
        client.until(lambda: client.is_over(stream))


def test_a_pod_that_is_gone_is_an_answer_with_words() -> None:
    with site() as node, pytest.raises(RefusedError, match="sandbox 'gone' not found"):
        PortForwardClient(node.forward_url(sandbox="gone"))


def test_a_client_that_leaves_takes_its_connections_along() -> None:
    begun, ended = threading.Event(), threading.Event()

    def note(sock: socket.socket) -> None:
        begun.set()
        with contextlib.suppress(OSError):
            while sock.recv(100):
                pass
        ended.set()

    with site() as node, listener(note) as port:
        with node.forward() as client:
            client.write(client.connect(port), b"x")
            block_until(begun.is_set)
        block_until(ended.is_set)
        block_until(lambda: node.backend.dialers[0].closed)


def test_a_connection_that_its_client_gives_up_while_it_is_made_is_closed() -> None:
    with site() as node, listener(echo) as port:
        node.backend.dial_delay_s = 0.2
        with node.forward() as client:
            connection = client.connect(port)
            client.give_up(connection)
            assert client.ask(port, b"next") == b"next"


def test_idle_sessions_end_and_busy_ones_do_not(clock: MovableClock) -> None:
    with site(limits=Limits(5, IDLE_S)) as node, listener(echo) as port, node.forward() as client:
        connection = client.connect(port)
        for sent in (b"a", b"ab", b"abc"):
            client.write(connection, sent[-1:])
            client.until(lambda sent=sent: client.received[connection] == sent)  # type: ignore[misc]
            node.let_pass(clock, 0.9 * IDLE_S)
        assert node.sessions == 1
        node.let_pass(clock, 0.1 * IDLE_S)
        client.until_closed()


def test_connections_given_up_as_they_are_made_leave_no_more_dials_than_are_made_at_once() -> None:
    with site() as node, listener(echo) as port, node.forward() as client:
        client.ask(port, b"first")
        node.backend.dialers[0].delay_s = 0.3
        for _ in range(500):
            client.give_up(client.connect(port))
        dialer = node.backend.dialers[0]
        block_until(lambda: dialer.begun > 1)
        client.ask(port, b"last")
        assert dialer.most_at_once <= port_forward.MAX_DIALS
        assert dialer.begun <= 2 + 2 * port_forward.MAX_DIALS, "most were forgotten before"
        block_until(lambda: dialer.under_way == 0)


def test_halves_of_pairs_that_are_given_up_and_made_again_are_a_bounded_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(port_forward, "MAX_HALF_OPEN", 20)
    with site(limits=Limits(0.5, 3600)) as node, node.forward() as client:
        for number in range(200):
            headers = {"streamtype": "data", "port": "80", "requestid": str(number % 50)}
            client.machine.reset(client.machine.open_stream(headers))
        headers = {"streamtype": "data", "port": "80", "requestid": "kept"}
        kept = client.machine.open_stream(headers)
        client.received[kept] = bytearray()
        client.flush()
        block_until(lambda: node.sessions)
        [session] = node.server.sessions
        assert isinstance(session, port_forward.PortForwardSession)
        block_until(lambda: "kept" in session.half_open)
        assert len(session.half_open) <= 20
        client.until(lambda: kept in client.reset)
        block_until(lambda: not session.half_open)


def test_a_target_is_read_as_far_as_the_clients_window_goes_and_its_end_is_heard_without() -> None:
    """A client that counts and has no room left: what the target says stays with the kernel, its end is passed on."""
    said = threading.Event()

    def say(sock: socket.socket) -> None:
        sock.sendall(sock.recv(10))
        said.wait(10)

    with site() as node, listener(say) as port, node.forward() as client:
        connection = client.connect(port)
        window = frames.WORDS.pack(1, frames.SETTINGS_INITIAL_WINDOW_SIZE) + frames.WORD.pack(3)
        client.sock.sendall(frames.control_frame(frames.FrameType.SETTINGS, window))
        client.write(connection, b"abcdef")
        client.until(lambda: client.received[connection] == b"abc")
        with pytest.raises(TimeoutError):
            client.receive(0.2)
        client.sock.sendall(
            frames.control_frame(frames.FrameType.WINDOW_UPDATE, frames.WORDS.pack(connection, 3))
        )
        client.until(lambda: client.received[connection] == b"abcdef")
        said.set()
        client.until(lambda: client.is_over(connection))
