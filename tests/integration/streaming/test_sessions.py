"""What an exec, an attach and a port-forward do in a real pod, over SPDY and over WebSocket."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness.streaming_client import (
    V4,
    V5,
    PortForwardClient,
    RefusedError,
    RemoteCommandClient,
)
from tests.integration.scene import (
    Pod,
    free_port,
    processes_running,
    refused,
    unique_seconds,
    wait_until,
    written,
)

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration
BOTH = pytest.mark.parametrize(("transport", "protocol"), [("spdy", V4), ("websocket", V5)])
LOOK = "id; env | sort; pwd; grep -E '^(Cap|Groups|Seccomp|NoNewPrivs)' /proc/self/status"


def attached(
    client: Client,
    container: str,
    transport: str = "spdy",
    *,
    stdin: bool = False,
    stderr: bool = True,
) -> RemoteCommandClient:
    url = client.attach_url(container, stdin=stdin, stderr=stderr)
    return RemoteCommandClient(url, transport, protocol=V5, stdin=stdin, stderr=stderr)


def wait_for(session: RemoteCommandClient, stdout: bytes, stderr: bytes) -> None:
    session.until(lambda: (session.stdout, session.stderr) == (stdout, stderr))


@BOTH
def test_an_exec_runs_as_the_container_does_and_ends_with_its_status(
    client: Client, image: str, transport: str, protocol: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.envs.add(key="COLOUR", value=b"blue")
    config.working_dir = "/var"
    config.linux.security_context.run_as_user.value = 1000
    config.linux.security_context.supplemental_groups.append(4242)
    container = pod.sleeper(config)
    own = pod.asks(container, LOOK)
    assert "COLOUR=blue" in own

    def run(*command: str, stdin: bytes | None = None) -> RemoteCommandClient:
        with RemoteCommandClient(
            client.exec_url(container, *command, stdin=stdin is not None),
            transport,
            protocol=protocol,
            stdin=stdin is not None,
        ) as session:
            if stdin is not None:
                session.write(stdin)
                session.end_stdin()
            return session.until_closed()

    assert run("sh", "-c", LOOK).stdout.decode() == own
    both = run("sh", "-c", "cat; echo err >&2; exit 3", stdin=b"from outside")
    assert (both.stdout, both.stderr, both.exit_code) == (b"from outside", b"err\n", 3)
    assert run("sh", "-c", "kill -TERM $$").exit_code == 143
    # Programs open these anew, as anybody.
    again = run("sh", "-c", "cat /dev/stdin; echo a >/dev/stdout; echo b >/dev/stderr", stdin=b"x")
    assert (again.stdout, again.stderr) == (b"xa\n", b"b\n")
    for program, exit_code in (("no-such-program", 127), ("/etc/passwd", 126)):
        failed = run(program)
        assert failed.exit_code == exit_code
        assert program in failed.stderr.decode()
    started = time.monotonic()
    assert run("sh", "-c", "sleep 30 & echo done").stdout == b"done\n"
    assert time.monotonic() - started < 5


@BOTH
def test_a_terminal_of_an_exec_is_sized_and_hung_up(
    client: Client, image: str, transport: str, protocol: str
) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    seconds = unique_seconds()
    url = client.exec_url(container, "sh", stdin=True, tty=True)
    with RemoteCommandClient(url, transport, protocol=protocol, stdin=True, tty=True) as session:
        session.resize(101, 31)
        session.write(b"stty -echo; stty size; tty; echo $TERM\n")
        session.until(lambda: session.stdout.count(b"xterm") > 1 or b"\nxterm" in session.stdout)
        assert b"31 101" in session.stdout
        assert b"/dev/pts/" in session.stdout
        session.resize(121, 41)
        session.write(b"stty size\n")
        session.until(lambda: b"41 121" in session.stdout)
        session.write(f"sleep {seconds}\n".encode())
        wait_until(lambda: processes_running(seconds))
    wait_until(lambda: not processes_running(seconds))
    assert pod.asks(container, "ps | grep -c '[s]h$' || :").strip() == "0"


@BOTH
def test_a_terminal_has_its_clients_size_when_the_command_begins(
    client: Client, image: str, transport: str, protocol: str
) -> None:
    container = Pod.run(client, image).sleeper()
    for width in range(101, 109):
        url = client.exec_url(container, "stty", "size", stdin=True, tty=True)
        with RemoteCommandClient(
            url, transport, protocol=protocol, stdin=True, tty=True
        ) as session:
            session.resize(width, 31)
            session.until_closed()
            assert session.stdout == b"31 %d\r\n" % width


def test_clients_join_one_container_watch_and_leave(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    script = "echo early; while read line; do echo got $line; echo no >&2; done; echo over"
    config = pod.container("sh", "-c", script)
    config.stdin = True
    container = pod.start(config)
    log = Path(client.status(container).status.log_path)
    wait_until(lambda: b"early" in written(log))
    with (
        attached(client, container, stdin=True) as one,
        attached(client, container, "websocket") as other,
    ):
        one.write(b"first\n")
        for session in (one, other):
            wait_for(session, b"got first\n", b"no\n")
        one.end_stdin()  # not the container's: another client may come
    with attached(client, container, "websocket", stdin=True) as late:
        late.write(b"second\n")
        late.until(lambda: late.stdout == b"got second\n")
    assert client.status(container).status.state == api.CONTAINER_RUNNING
    with attached(client, container, stdin=True) as last:
        last.write(b"third\n")
        last.until(lambda: last.stdout == b"got third\n")
        client.stop(container)
        assert last.until_closed().exit_code == 0
    assert written(log) == b"early\ngot first\ngot second\ngot third\n"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "not running"):
        client.attach_url(container)


def test_input_for_once_ends_with_the_first_who_brings_some(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("sh", "-c", "cat; echo over")
    config.stdin = config.stdin_once = True
    container = pod.start(config)
    with attached(client, container, stderr=False):
        pass  # watches only: that ends nothing
    with attached(client, container, stdin=True) as feeder:
        feeder.write(b"x" * 100_000)
        feeder.write(b"\n")
        feeder.end_stdin()
        feeder.until_closed()
        assert feeder.stdout == b"x" * 100_000 + b"\nover\n"
    assert client.wait_exited(container).exit_code == 0


@BOTH
def test_a_terminal_of_a_container_is_shared_and_sized(
    client: Client, image: str, transport: str, protocol: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("sh")
    config.tty = config.stdin = True
    container = pod.start(config)
    url = client.attach_url(container, stdin=True, tty=True)
    with RemoteCommandClient(url, transport, protocol=protocol, stdin=True, tty=True) as session:
        for width, height in ((90, 20), (132, 43)):
            session.resize(width, height)
            wanted = b"%d %d" % (height, width)
            deadline = time.monotonic() + 10
            while wanted not in session.stdout and time.monotonic() < deadline:
                session.write(b"stty size\n")  # the size goes another way than the question
                session.receive()
            assert wanted in session.stdout
    assert client.status(container).status.state == api.CONTAINER_RUNNING


def test_a_new_daemon_serves_the_streams_and_ends_the_old_ones_execs(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    pod = Pod.run(client, image)
    config = pod.container("sh", "-c", "while read line; do echo got $line; done")
    config.stdin = True
    container = pod.start(config)
    seconds = unique_seconds()
    with (
        RemoteCommandClient(client.exec_url(container, "sleep", seconds)) as orphan,
        attached(client, container, stdin=True) as before,
    ):
        before.write(b"one\n")
        before.until(lambda: before.stdout == b"got one\n")
        wait_until(lambda: processes_running(seconds))
        crash_daemon.kill9()
        orphan.until_closed()
        before.until_closed()
        crash_daemon.start()
    wait_until(lambda: not processes_running(seconds))
    with attached(client, container, stdin=True) as after:
        after.write(b"two\n")
        after.until(lambda: after.stdout == b"got two\n")
        # An orderly stop tells its clients.
        assert crash_daemon.stop() == 0
        assert "shutting down" in after.until_closed().status["message"]
    crash_daemon.start()
    exec_url = client.exec_url(container, "echo", "again")
    with RemoteCommandClient(exec_url) as session:
        assert session.until_closed().stdout == b"again\n"


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_ports_of_a_pod_are_its_loopbacks(client: Client, image: str, transport: str) -> None:
    pod = Pod.run(client, image)
    port = 8080
    serve = f"mkdir /www; echo inside > /www/f; httpd -f -p 127.0.0.1:{port} -h /www"
    pod.start(pod.container("sh", "-c", serve))
    host = client.pod_config(host_network=True)
    node = Pod.run(client, image, host)
    node_port = free_port()
    node.start(
        node.container(
            "sh", "-c", f"mkdir /www; echo node > /www/f; httpd -f -p 127.0.0.1:{node_port} -h /www"
        )
    )
    for each, at, said in ((pod, port, b"inside\n"), (node, node_port, b"node\n")):
        with PortForwardClient(client.port_forward_url(each.id, at), transport) as session:
            answer = b""
            deadline = time.monotonic() + 10
            while not answer and time.monotonic() < deadline:
                answer = session.ask(at, b"GET /f HTTP/1.0\r\n\r\n")
            assert answer.endswith(said)
    with PortForwardClient(client.port_forward_url(pod.id), transport) as session:
        nobody = session.connect(9)
        session.until(lambda: session.is_over(nobody) and session.errors[nobody])
        assert b"cannot connect to port 9: 127.0.0.1: Connection refused" in session.errors[nobody]
    url = client.port_forward_url(pod.id)
    client.stop_pod(pod.id)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, pod.id, "not ready"):
        client.port_forward_url(pod.id)
    with pytest.raises(RefusedError, match="is not ready"):
        PortForwardClient(url, transport)


def test_an_exec_in_what_is_gone_says_so(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    stopped, removed = (client.exec_url(container, "true") for _ in range(2))
    client.stop(container)
    with RemoteCommandClient(stopped) as session:
        assert "not running" in session.until_closed().status["message"]
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "not running"):
        client.exec_url(container, "true")
    client.remove(container)
    with RemoteCommandClient(removed, "websocket", protocol=V5) as session:
        assert "not found" in session.until_closed().status["message"]


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_an_exec_of_what_is_not_there_says_so_and_ends_as_in_a_shell(
    client: Client, image: str, transport: str, *, tty: bool
) -> None:
    container = Pod.run(client, image).sleeper()
    url = client.exec_url(container, "no-such-program", stdin=True, stderr=not tty, tty=tty)
    with RemoteCommandClient(url, transport, stdin=True, tty=tty) as session:
        session.until_closed()
        assert session.exit_code == 127
        said = session.stdout if tty else session.stderr
        assert b"executable file not found in $PATH" in said


def test_a_stop_ends_the_execs_and_is_not_held_up_by_them(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    with RemoteCommandClient(client.exec_url(container, "yes")) as stalled:
        stalled.until(lambda: len(stalled.stdout) > 1000)
        time.sleep(0.3)  # all buffers are full
        started = time.monotonic()
        client.stop(container)
        assert time.monotonic() - started < 3
        assert stalled.until_closed().exit_code == 137


def test_a_paused_container_refuses_instead_of_hanging(
    client: Client, daemon: Daemon, image: str
) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    runc = ["runc", "--root", str(daemon.state / "runtime/runc")]
    subprocess.run([*runc, "pause", container], check=True)
    try:
        with RemoteCommandClient(client.exec_url(container, "true")) as session:
            assert session.until_closed().status["status"] == "Failure"
        with refused(grpc.StatusCode.INTERNAL, container):
            client.exec(container, "true", timeout_s=5)
    finally:
        subprocess.run([*runc, "resume", container], check=True)
    with RemoteCommandClient(client.exec_url(container, "true")) as session:
        assert session.until_closed().exit_code == 0
