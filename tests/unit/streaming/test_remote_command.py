"""Execs through a real server and real pipes; the commands are this machine's."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim.streaming import connection, remote_command
from cri_shim.streaming.session import MAX_INPUT_BYTES, Limits
from cri_shim.streaming.wire.spdy_flow import GRANT_BYTES, INITIAL_WINDOW
from tests.fakes.clock import block_until
from tests.harness.streaming_client import V4, V5, RemoteCommandClient, dial, spdy_headers
from tests.unit.streaming.site import site

if TYPE_CHECKING:
    from tests.fakes.clock import MovableClock

IDLE_S = 3600.0
BOTH = pytest.mark.parametrize("transport", ["spdy", "websocket"])


@pytest.mark.parametrize(
    ("transport", "protocol"),
    [
        ("spdy", "v2.channel.k8s.io"),
        ("spdy", "v3.channel.k8s.io"),
        ("spdy", V4),
        ("spdy", V5),
        ("websocket", V4),
        ("websocket", V5),
        ("websocket", "v4.base64.channel.k8s.io"),
        ("websocket", "channel.k8s.io"),
        ("websocket", "base64.channel.k8s.io"),
    ],
)
def test_output_and_exit_code_arrive_over_every_protocol(transport: str, protocol: str) -> None:
    with (
        site() as node,
        node.exec(
            "sh", "-c", "echo out; echo err >&2; exit 3", transport=transport, protocol=protocol
        ) as client,
    ):
        client.until_closed()
        assert (client.stdout, client.stderr) == (b"out\n", b"err\n")
        if protocol in (V4, V5, "v4.base64.channel.k8s.io"):
            assert client.status["reason"] == "NonZeroExitCode"
            assert client.exit_code == 3
        else:
            assert b"exit status 3" in client.outputs["error"]


@BOTH
def test_success_and_signals_are_told(transport: str) -> None:
    with site() as node:
        with node.exec("true", transport=transport) as client:
            assert client.until_closed().exit_code == 0
        with node.exec("sh", "-c", "kill -9 $$", transport=transport) as client:
            assert client.until_closed().exit_code == 137


@BOTH
def test_what_cannot_be_started_is_told_in_the_error_stream(transport: str) -> None:
    with site() as node:
        url = node.exec_url("true", container="gone")
        with RemoteCommandClient(url, transport) as client:
            status = client.until_closed().status
    assert status["status"] == "Failure"
    assert "container 'gone' not found" in status["message"]


@pytest.mark.parametrize(("transport", "protocol"), [("spdy", V4), ("websocket", V5)])
def test_the_end_of_the_input_reaches_the_command_behind_all_of_it(
    transport: str, protocol: str
) -> None:
    sent = os.urandom(3_000_000)
    with (
        site() as node,
        node.exec("cat", transport=transport, protocol=protocol, stdin=True) as client,
    ):
        for start in range(0, len(sent), 100_000):
            client.write(sent[start : start + 100_000])
            while len(client.stdout) + 500_000 < start:
                client.receive()
        client.end_stdin()
        assert client.until_closed().exit_code == 0
        assert client.stdout == sent


@BOTH
def test_output_of_many_megabytes_arrives_whole(transport: str) -> None:
    with site() as node, node.exec("head", "-c", "20000000", "/dev/zero", transport=transport) as c:
        assert c.until_closed().exit_code == 0
        assert c.stdout == bytes(20_000_000)


def test_input_that_nobody_reads_is_dropped_and_the_exit_code_still_comes() -> None:
    with site() as node, node.exec("sh", "-c", "exec <&-; sleep 0.3; exit 4", stdin=True) as client:
        for _ in range(40):
            client.write(bytes(100_000))
        assert client.until_closed().exit_code == 4


@BOTH
def test_a_child_that_holds_the_pipes_holds_nobody_up(transport: str) -> None:
    with (
        site() as node,
        node.exec("sh", "-c", "sleep 600 & echo $!", transport=transport) as client,
    ):
        assert client.until_closed().exit_code == 0
        os.kill(int(client.stdout), signal.SIGKILL)  # it still runs


@BOTH
def test_a_client_that_vanishes_ends_the_input_and_frees_everything(
    transport: str, tmp_path: os.PathLike[str]
) -> None:
    note = os.path.join(tmp_path, "note")
    with site() as node:
        script = f"cat >/dev/null; echo over > {note}"
        with node.exec("sh", "-c", script, transport=transport, stdin=True) as client:
            client.write(b"some")
            block_until(lambda: node.backend.processes)
        block_until(lambda: node.sessions == 0)
        block_until(lambda: os.path.exists(note))


def test_a_client_that_vanishes_makes_further_output_fail() -> None:
    with site() as node:
        with node.exec("yes") as client:
            client.until(lambda: len(client.stdout) > 10_000)
        block_until(lambda: node.sessions == 0)
        assert node.backend.processes[0].wait(5) == -13  # SIGPIPE


def test_a_client_that_vanishes_while_it_is_not_listened_to_is_noticed(
    clock: MovableClock,
) -> None:
    with site() as node:
        with node.exec("sleep", "600", stdin=True) as client:
            client.sock.setblocking(False)
            client.machine.send_data(client.ids["stdin"], bytes(8_000_000))
            data = b"".join(client.machine.data_to_send())

            def is_stuck() -> bool:
                """Its command runs, and the server takes no more of what it sends."""
                nonlocal data
                try:
                    while data:
                        data = data[client.sock.send(data) :]
                except BlockingIOError:
                    return bool(node.backend.processes)
                raise AssertionError("the server takes all of it")

            block_until(is_stuck)
        node.let_pass(clock, connection.LOOK_S)
        block_until(lambda: node.sessions == 0)


@BOTH
def test_a_client_that_does_not_read_makes_only_the_command_wait(transport: str) -> None:
    with (
        site() as node,
        node.exec("sh", "-c", "exec yes", transport=transport) as stalled,
    ):
        block_until(lambda: node.backend.processes and node.server.sessions[0].unsent)
        [session] = node.server.sessions
        assert session.unsent < 1 << 20
        with node.exec("true", transport=transport) as other:
            assert other.until_closed().exit_code == 0
        node.backend.processes[0].kill()
        assert stalled.until_closed().exit_code == 137


def test_a_client_that_never_takes_the_rest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_command, "STALL_S", 0.2)
    monkeypatch.setattr("cri_shim.streaming.session.STALL_S", 0.2)
    with site() as node, node.exec("sh", "-c", "exec yes"):
        block_until(lambda: node.backend.processes and node.server.sessions[0].unsent)
        node.backend.processes[0].kill()
        block_until(lambda: node.sessions == 0)


def test_a_client_that_does_not_make_its_streams_is_told_which() -> None:
    with site(limits=Limits(0.2, 60)) as node:
        url = node.exec_url("true", stdin=True)
        with RemoteCommandClient(url, stdout=False) as client:  # makes error and stderr only
            status = client.until_closed().status
        assert node.backend.processes == []
    assert "did not open its streams within 0.2 s: stdin, stdout" in status["message"]


def test_silence_for_too_long_ends_the_session_with_the_reason(clock: MovableClock) -> None:
    with (
        site(limits=Limits(5, IDLE_S)) as node,
        node.exec("cat", stdin=True) as client,
    ):
        for sent in (b"a", b"ab", b"abc"):
            client.write(sent[-1:])
            client.until(lambda sent=sent: client.stdout == sent)  # type: ignore[misc]
            node.let_pass(clock, 0.9 * IDLE_S)
        assert node.sessions == 1
        node.let_pass(clock, 0.1 * IDLE_S)
        assert "no data was sent or received" in client.until_closed().status["message"]


@BOTH
def test_a_server_that_stops_tells_its_clients(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    with site() as node, node.exec("sleep", "600", transport=transport) as client:
        block_until(lambda: node.backend.processes)
        node.await_(node.server.stop(3))
        assert "shutting down" in client.until_closed().status["message"]


@pytest.mark.parametrize(("transport", "protocol"), [("spdy", V4), ("websocket", V5)])
def test_a_terminal_has_its_size_and_gets_the_next_one(transport: str, protocol: str) -> None:
    with (
        site() as node,
        node.exec("sh", transport=transport, protocol=protocol, stdin=True, tty=True) as client,
    ):
        client.resize(100, 30)
        client.write(b"stty size; stty -echo\n")
        client.until(lambda: b"30 100" in client.stdout)
        client.resize(120, 40)
        client.write(b"stty size\n")
        client.until(lambda: b"40 120" in client.stdout)
        client.end_stdin()  # means nothing to a terminal
        client.resize(160, 50)
        block_until(lambda: node.backend.resizes[-1] == (160, 50))
        assert node.backend.processes[0].poll() is None
        node.backend.processes[0].kill()
        assert client.until_closed().exit_code == 137


@BOTH
def test_a_command_begins_with_the_size_that_comes_behind_the_streams(transport: str) -> None:
    with site() as node:
        for width in range(100, 110):
            with node.exec("true", transport=transport, tty=True) as client:
                client.resize(width, 30)
                client.until_closed()
        assert node.backend.sizes == [(width, 30) for width in range(100, 110)]


def test_a_command_waits_a_moment_for_the_size_of_a_terminal_and_for_none_without_one() -> None:
    with site() as node:
        with node.exec("true", tty=True) as client:
            client.until_closed()
        with node.exec("true") as client:
            client.until_closed()
        assert node.backend.sizes == [None, None]


@BOTH
def test_a_shell_on_a_terminal_ends_with_its_exit_code(transport: str) -> None:
    with site() as node, node.exec("sh", transport=transport, stdin=True, tty=True) as client:
        client.write(b"exit 7\n")
        assert client.until_closed().exit_code == 7


def test_a_terminals_last_words_arrive() -> None:
    with site() as node:
        for _ in range(20):
            with node.exec("sh", "-c", "echo last words; exit 5", tty=True) as client:
                assert client.until_closed().exit_code == 5
                assert client.stdout == b"last words\r\n"


def test_a_client_that_vanishes_hangs_its_terminal_up() -> None:
    with site() as node:
        with node.exec("sh", "-c", "echo on; exec sleep 600", stdin=True, tty=True) as client:
            client.until(lambda: b"on" in client.stdout)
            client.resize(80, 25)
        assert node.backend.processes[0].wait(5) in (-1, 129)  # SIGHUP


def test_attaching_to_something_that_is_over_still_brings_what_it_said() -> None:
    with site() as node, RemoteCommandClient(node.attach_url()) as client:
        assert client.until_closed().exit_code == 0
        assert client.stdout == b"hello"


def test_garbage_behind_the_upgrade_costs_the_client_its_session_only() -> None:
    with site() as node:
        sock, _ = dial(node.exec_url("true"), spdy_headers(V4), method="POST")
        with sock:
            sock.sendall(b"\xff" * 1000)
            sock.settimeout(5)
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
        assert data  # a GOAWAY
        block_until(lambda: node.sessions == 0)
        with node.exec("true") as client:
            assert client.until_closed().exit_code == 0


def test_many_sessions_leave_nothing_behind() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with site() as node:
        with node.exec("true") as client:
            client.until_closed()
        block_until(lambda: node.sessions == 0)
        before = descriptors()
        for number in range(30):
            with node.exec(
                "cat", stdin=True, transport="websocket" if number % 2 else "spdy"
            ) as client:
                if number % 3:
                    client.write(b"x")
        block_until(lambda: node.sessions == 0)
        for process in node.backend.processes:
            process.wait(5)
        block_until(lambda: descriptors() <= before)


def test_a_half_open_socket_is_not_waited_for() -> None:
    with site() as node, node.exec("sleep", "600") as client:
        block_until(lambda: node.backend.processes)
        client.sock.shutdown(socket.SHUT_WR)
        block_until(lambda: node.sessions == 0)


def test_a_client_that_makes_no_room_for_output_is_still_heard_when_it_does() -> None:
    with site() as node, node.exec("cat", stdin=True) as client:
        stdin, stdout = client.ids["stdin"], client.ids["stdout"]
        client.write(bytes(INITIAL_WINDOW))
        client.until(lambda: len(client.stdout) == INITIAL_WINDOW)
        client.machine.consumed(stdout, INITIAL_WINDOW)  # now the server knows that it counts
        sent = INITIAL_WINDOW
        # As much as the server takes, until the command waits for its output to be taken.
        while True:
            taken = client.machine.send_data(stdin, bytes(1 << 16))
            sent += taken
            client.flush()
            if not taken:
                try:
                    client.receive(timeout_s=0.3)
                except TimeoutError:
                    break
        assert sent > 2 * INITIAL_WINDOW
        consumed = INITIAL_WINDOW
        while len(client.stdout) < sent:
            client.machine.consumed(stdout, len(client.stdout) - consumed)
            consumed = len(client.stdout)
            client.flush()
            client.receive()


def test_what_a_client_that_counts_may_send_is_always_listened_to() -> None:
    # Else its word that there is room for output would be behind what is not read.
    assert GRANT_BYTES < MAX_INPUT_BYTES
