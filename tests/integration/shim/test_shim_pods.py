"""Pods of containerd-shim-runc-v2, used as a kubelet and its users do."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness.streaming_client import V4, V5, PortForwardClient, RemoteCommandClient
from tests.integration.scene import (
    Pod,
    log_lines,
    refused,
    unique_seconds,
    wait_until,
    written,
)
from tests.integration.shim.conftest import SHIM

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

BOTH = pytest.mark.parametrize(("transport", "protocol"), [("spdy", V4), ("websocket", V5)])
MIB = 1 << 20


def log_of(client: Client, container: str) -> Path:
    return Path(client.status(container).status.log_path)


def is_on(client: Client, container: str) -> bool:
    return written(log_of(client, container)) == b"on\n"


def test_containers_of_a_pod_share_one_shim_and_tell_their_output_and_codes(
    shim_client: Client, image: str
) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)

    ended = pod.ends(pod.container("sh", "-c", "echo done; exit 3"))
    talker = pod.start(pod.container("sh", "-c", "echo out; echo err >&2; sleep 3600"))
    sleeper = pod.sleeper()

    assert (ended.exit_code, ended.reason) == (3, "Error")
    assert written(Path(ended.log_path)) == b"done\n"
    log = log_of(shim_client, talker)
    wait_until(lambda: len(log_lines(log)) == 2)
    assert (written(log), written(log, "stderr")) == (b"out\n", b"err\n")
    assert pod.asks(sleeper, "echo $((6 * 7))") == "42\n"


def test_containers_of_a_pod_share_processes_names_and_network(
    shim_client: Client, image: str
) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    pod.start(pod.container("nc", "-ll", "-p", "8080", "-e", "echo", "here"))
    other = pod.sleeper()

    def answered() -> bool:
        command = ("sh", "-c", "nc 127.0.0.1 8080 </dev/null")
        return shim_client.exec(other, *command).stdout == b"here\n"

    wait_until(answered)
    processes = pod.asks(other, "ps")
    assert "catatonit" in processes
    assert "nc -ll" in processes
    assert pod.asks(other, "hostname") == f"{pod.config.hostname}\n"


def test_exec_has_streams_codes_and_a_deadline_that_ends_it_in_the_sandbox(
    shim_client: Client, image: str
) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    container = pod.sleeper()
    seconds = unique_seconds()

    answer = shim_client.exec(container, "sh", "-c", "echo a; echo b >&2; exit 7")
    missing = shim_client.exec(container, "no-such-program")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "within 1 s"):
        shim_client.exec(container, "sh", "-c", f"sleep {seconds} & sleep {seconds}", timeout_s=1)

    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"a\n", b"b\n", 7)
    assert (missing.exit_code, b"no-such-program" in missing.stderr) == (127, True)
    wait_until(lambda: seconds not in pod.asks(container, "ps"))


@BOTH
def test_exec_and_attach_over_streams(
    shim_client: Client, image: str, transport: str, protocol: str
) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    config = pod.container("sh", "-c", "while read line; do echo got $line; done; exit 4")
    config.stdin = config.stdin_once = True
    reader = pod.start(config)

    url = shim_client.exec_url(reader, "sh", "-c", "cat; echo e >&2; exit 9", stdin=True)
    with RemoteCommandClient(url, transport, protocol=protocol, stdin=True) as session:
        session.write(b"x" * 100_000)
        session.write(b"end\n")
        session.end_stdin() if protocol == V5 or transport == "spdy" else None
        session.until_closed()
    assert (len(session.stdout), session.stderr, session.exit_code) == (100_004, b"e\n", 9)

    url = shim_client.attach_url(reader, stdin=True)
    with RemoteCommandClient(url, transport, protocol=protocol, stdin=True) as session:
        session.write(b"one\n")
        session.until(lambda: session.stdout == b"got one\n")
        session.end_stdin()
        session.until_closed()
    assert shim_client.wait_exited(reader).exit_code == 4


def test_terminals_of_execs_and_of_containers_have_a_size(shim_client: Client, image: str) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    config = pod.container("sh")
    config.tty = config.stdin = True
    container = pod.start(config)

    url = shim_client.exec_url(container, "sh", stdin=True, tty=True)
    with RemoteCommandClient(url, stdin=True, tty=True) as session:
        session.resize(101, 31)
        session.write(b"stty -echo; stty size; exit 6\n")
        session.until_closed()
    assert b"31 101" in session.stdout
    assert session.exit_code == 6

    url = shim_client.attach_url(container, stdin=True, tty=True)
    with RemoteCommandClient(url, stdin=True, tty=True) as session:
        session.write(b"echo $((6*7)); exit 5\n")
        session.until_closed()
    assert b"42" in session.stdout
    assert shim_client.wait_exited(container).exit_code == 5


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_port_forward_reaches_what_listens_in_the_sandbox(
    shim_client: Client, image: str, transport: str
) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    pod.start(pod.container("nc", "-ll", "-p", "9000", "-e", "cat"))

    def echoed() -> bool:
        with PortForwardClient(shim_client.port_forward_url(pod.id, 9000), transport) as session:
            connection = session.connect(9000)
            session.write(connection, b"hello")
            session.until(
                lambda: session.received[connection] == b"hello" or session.is_over(connection)
            )
            return bytes(session.received[connection]) == b"hello"

    wait_until(echoed)


def test_statistics_come_from_the_sandbox(shim_client: Client, image: str) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    busy = pod.start(pod.container("sh", "-c", "while :; do :; done"))
    idle = pod.sleeper()

    def usage(container: str) -> api.ContainerStats:
        request = api.ContainerStatsRequest(container_id=container)
        return shim_client.runtime.ContainerStats(request, timeout=10).stats

    wait_until(lambda: usage(busy).cpu.usage_core_nano_seconds.value > 100_000_000)
    wait_until(lambda: usage(idle).memory.usage_bytes.value > 0)
    assert usage(busy).memory.working_set_bytes.value > 0
    assert usage(idle).HasField("writable_layer")


def test_a_stop_gives_grace_and_then_kills(shim_client: Client, image: str) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    polite = pod.start(
        pod.container(
            "sh", "-c", "trap 'echo bye; exit 8' TERM; echo on; while :; do sleep 0.1; done"
        )
    )
    deaf = pod.start(
        pod.container("sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.1; done")
    )
    for each in (polite, deaf):
        wait_until(partial(is_on, shim_client, each))

    shim_client.stop(polite, timeout_s=20)
    shim_client.stop(deaf, timeout_s=1)

    assert shim_client.status(polite).status.exit_code == 8
    assert written(log_of(shim_client, polite)) == b"on\nbye\n"
    assert shim_client.status(deaf).status.exit_code == 137
    assert pod.asks(pod.sleeper(), "echo still") == "still\n"


def test_a_created_container_may_be_removed_and_a_program_that_is_not_there_fails_the_start(
    shim_client: Client, image: str
) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    created = pod.create(pod.container("sleep", "1"))
    broken = pod.create(pod.container("no-such-program"))

    with pytest.raises(grpc.RpcError) as raised:
        shim_client.start(broken)

    assert "no-such-program" in str(raised.value)
    status = shim_client.status(broken).status
    assert (status.state, status.exit_code, status.reason) == (
        api.CONTAINER_EXITED,
        128,
        "StartError",
    )
    shim_client.remove(created)
    shim_client.remove(broken)


def test_containers_go_on_without_the_daemon_and_their_ends_are_known(
    shim_daemon: Daemon, shim_client: Client, image: str
) -> None:
    pod = Pod.run(shim_client, image, handler=SHIM)
    ender = pod.start(
        pod.container("sh", "-c", "echo on; while ! [ -e /tmp/end ]; do sleep 0.1; done; exit 21")
    )
    sleeper = pod.sleeper()
    later = pod.create(pod.container("sh", "-c", "exit 22"))
    pod.asks(ender, "(sleep 1; touch /tmp/end) >/dev/null 2>&1 &")

    shim_daemon.kill9()
    time.sleep(2)
    shim_daemon.start()

    assert shim_client.wait_exited(ender).exit_code == 21
    assert pod.asks(sleeper, "echo still") == "still\n"
    shim_client.start(later)
    assert shim_client.wait_exited(later).exit_code == 22
    assert pod.ends(pod.container("sh", "-c", "exit 23")).exit_code == 23
