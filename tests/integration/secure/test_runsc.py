"""Pods in gVisor: several containers in one sandbox, used as a kubelet and its users do."""

from __future__ import annotations

import os
import signal
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
    cgroups_of,
    container_info,
    log_lines,
    refused,
    unique_seconds,
    wait_until,
    written,
)
from tests.integration.secure.conftest import RUNSC

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.runsc
BOTH = pytest.mark.parametrize(("transport", "protocol"), [("spdy", V4), ("websocket", V5)])
MIB = 1 << 20


def log_of(client: Client, container: str) -> Path:
    return Path(client.status(container).status.log_path)


def is_on(client: Client, container: str) -> bool:
    return written(log_of(client, container)) == b"on\n"


def test_the_kernel_is_gvisors_and_three_containers_live_beside_each_other(
    secure_client: Client, image: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)

    kernel = pod.ends(pod.container("sh", "-c", "dmesg; exit 3"))
    talker = pod.start(pod.container("sh", "-c", "echo out; echo err >&2; sleep 3600"))
    sleeper = pod.sleeper()

    assert (kernel.exit_code, kernel.reason) == (3, "Error")
    assert b"gVisor" in written(Path(kernel.log_path))
    log = log_of(secure_client, talker)
    wait_until(lambda: len(log_lines(log)) == 2)
    assert (written(log), written(log, "stderr")) == (b"out\n", b"err\n")
    assert pod.asks(sleeper, "echo $((6 * 7))") == "42\n"
    assert "gVisor" in pod.asks(sleeper, "dmesg")


def test_containers_of_a_pod_share_processes_names_and_network(
    secure_client: Client, image: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    pod.start(pod.container("nc", "-ll", "-p", "8080", "-e", "echo", "here"))
    other = pod.sleeper()

    def answered() -> bool:
        command = ("sh", "-c", "nc 127.0.0.1 8080 </dev/null")
        return secure_client.exec(other, *command).stdout == b"here\n"

    wait_until(answered)
    processes = pod.asks(other, "ps")
    assert "catatonit" in processes
    assert "nc -ll" in processes
    assert pod.asks(other, "hostname") == f"{pod.config.hostname}\n"


def test_exec_has_streams_codes_and_a_deadline_that_ends_it_in_the_sandbox(
    secure_client: Client, image: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    container = pod.sleeper()
    seconds = unique_seconds()

    answer = secure_client.exec(container, "sh", "-c", "echo a; echo b >&2; exit 7")
    missing = secure_client.exec(container, "no-such-program")
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "within 1 s"):
        secure_client.exec(container, "sh", "-c", f"sleep {seconds} & sleep {seconds}", timeout_s=1)

    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"a\n", b"b\n", 7)
    assert (missing.exit_code, b"no-such-program" in missing.stderr) == (127, True)
    wait_until(lambda: seconds not in pod.asks(container, "ps"))


@BOTH
def test_exec_and_attach_over_streams(
    secure_client: Client, image: str, transport: str, protocol: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    config = pod.container("sh", "-c", "while read line; do echo got $line; done; exit 4")
    config.stdin = config.stdin_once = True
    reader = pod.start(config)

    url = secure_client.exec_url(reader, "sh", "-c", "cat; echo e >&2; exit 9", stdin=True)
    with RemoteCommandClient(url, transport, protocol=protocol, stdin=True) as session:
        session.write(b"x" * 100_000)
        session.write(b"end\n")
        session.end_stdin() if protocol == V5 or transport == "spdy" else None
        session.until_closed()
    assert (len(session.stdout), session.stderr, session.exit_code) == (100_004, b"e\n", 9)

    url = secure_client.attach_url(reader, stdin=True)
    with RemoteCommandClient(url, transport, protocol=protocol, stdin=True) as session:
        session.write(b"one\n")
        session.until(lambda: session.stdout == b"got one\n")
        session.end_stdin()
        session.until_closed()
    assert secure_client.wait_exited(reader).exit_code == 4


def test_terminals_of_execs_and_of_containers_have_a_size(
    secure_client: Client, image: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    config = pod.container("sh")
    config.tty = config.stdin = True
    container = pod.start(config)

    url = secure_client.exec_url(container, "sh", stdin=True, tty=True)
    with RemoteCommandClient(url, stdin=True, tty=True) as session:
        session.resize(101, 31)
        session.write(b"stty -echo; stty size; exit 6\n")
        session.until_closed()
    assert b"31 101" in session.stdout
    assert session.exit_code == 6

    url = secure_client.attach_url(container, stdin=True, tty=True)
    with RemoteCommandClient(url, stdin=True, tty=True) as session:
        session.write(b"echo $((6*7)); exit 5\n")
        session.until_closed()
    assert b"42" in session.stdout
    assert secure_client.wait_exited(container).exit_code == 5


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_port_forward_reaches_what_listens_in_the_sandbox(
    secure_client: Client, image: str, transport: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    pod.start(pod.container("nc", "-ll", "-p", "9000", "-e", "cat"))

    def echoed() -> bool:
        with PortForwardClient(secure_client.port_forward_url(pod.id, 9000), transport) as session:
            connection = session.connect(9000)
            session.write(connection, b"hello")
            session.until(
                lambda: session.received[connection] == b"hello" or session.is_over(connection)
            )
            return bytes(session.received[connection]) == b"hello"

    wait_until(echoed)


def test_statistics_come_from_the_sandbox(secure_client: Client, image: str) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    busy = pod.start(pod.container("sh", "-c", "while :; do :; done"))
    idle = pod.sleeper()

    def usage(container: str) -> api.ContainerStats:
        request = api.ContainerStatsRequest(container_id=container)
        return secure_client.runtime.ContainerStats(request, timeout=10).stats

    wait_until(lambda: usage(busy).cpu.usage_core_nano_seconds.value > 100_000_000)
    wait_until(lambda: usage(idle).memory.usage_bytes.value > 0)
    assert usage(busy).memory.working_set_bytes.value > 0
    assert usage(idle).HasField("writable_layer")


def test_a_stop_gives_grace_and_then_kills(secure_client: Client, image: str) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    polite = pod.start(
        pod.container(
            "sh", "-c", "trap 'echo bye; exit 8' TERM; echo on; while :; do sleep 0.1; done"
        )
    )
    deaf = pod.start(
        pod.container("sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.1; done")
    )
    for each in (polite, deaf):
        wait_until(partial(is_on, secure_client, each))

    secure_client.stop(polite, timeout_s=20)
    secure_client.stop(deaf, timeout_s=1)

    assert secure_client.status(polite).status.exit_code == 8
    assert written(log_of(secure_client, polite)) == b"on\nbye\n"
    assert secure_client.status(deaf).status.exit_code == 137
    assert pod.asks(pod.sleeper(), "echo still") == "still\n"


def test_a_created_container_may_be_removed_and_a_program_that_is_not_there_fails_the_start(
    secure_client: Client, image: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    created = pod.create(pod.container("sleep", "1"))
    broken = pod.create(pod.container("no-such-program"))

    with pytest.raises(grpc.RpcError) as raised:
        secure_client.start(broken)

    assert "no-such-program" in str(raised.value)
    status = secure_client.status(broken).status
    assert (status.state, status.exit_code, status.reason) == (
        api.CONTAINER_EXITED,
        128,
        "StartError",
    )
    secure_client.remove(created)
    secure_client.remove(broken)


def test_the_nodes_namespaces_are_refused(secure_client: Client) -> None:
    for field in ("network", "pid", "ipc"):
        config = secure_client.pod_config()
        setattr(config.linux.security_context.namespace_options, field, api.NODE)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, field, "own kernel"):
            secure_client.run_pod(config, handler=RUNSC)


def test_limits_cannot_be_changed_by_a_runtime_that_has_no_update(
    secure_client: Client, image: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    container = pod.sleeper()
    request = api.UpdateContainerResourcesRequest(
        container_id=container, linux=api.LinuxContainerResources(cpu_shares=512)
    )
    with refused(grpc.StatusCode.UNIMPLEMENTED, container, "runsc"):
        secure_client.runtime.UpdateContainerResources(request, timeout=10)


def test_a_pod_over_the_memory_of_its_cgroup_says_so(
    secure_daemon: Daemon, secure_client: Client, image: str
) -> None:
    parent = Path("/sys/fs/cgroup/memory") / secure_daemon.cgroup_parent.strip("/") / "small"
    parent.mkdir(parents=True)
    try:
        (parent / "memory.limit_in_bytes").write_text(str(300 * MIB))
        config = secure_client.pod_config()
        config.linux.cgroup_parent = f"{secure_daemon.cgroup_parent}/small"
        pod = Pod.run(secure_client, image, config, handler=RUNSC)
        eater = pod.container("dd", "if=/dev/zero", "of=/dev/null", "bs=600M", "count=1")
        status = secure_client.wait_exited(pod.start(eater), timeout_s=60)
        assert (status.exit_code, status.reason) == (137, "OOMKilled")
        wait_until(lambda: secure_client.pod_status(pod.id).status.state == api.SANDBOX_NOTREADY)
        secure_client.stop_pod(pod.id)
        secure_client.remove_pod(pod.id)
    finally:
        for top, names, _ in os.walk("/sys/fs/cgroup", topdown=False):
            for name in names:
                if name == "small" and secure_daemon.name in top:
                    Path(top, name).rmdir()


def test_a_sandbox_that_is_killed_is_not_ready_and_goes(secure_client: Client, image: str) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    container = pod.sleeper()
    info = secure_client.pod_status(pod.id, verbose=True).info["info"]
    pid = int(info.partition('"pid":')[2].partition(",")[0])

    os.kill(pid, signal.SIGKILL)

    assert secure_client.wait_exited(container).exit_code == 137
    wait_until(lambda: secure_client.pod_status(pod.id).status.state == api.SANDBOX_NOTREADY)
    secure_client.stop_pod(pod.id)
    secure_client.remove_pod(pod.id)
    assert cgroups_of(pod.id) == []


def test_a_proxy_that_is_killed_ends_its_container_alone(secure_client: Client, image: str) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    container, other = pod.sleeper(), pod.sleeper()
    pid = int(container_info(secure_client, container)["pid"])

    os.kill(pid, signal.SIGKILL)

    assert secure_client.wait_exited(container).exit_code == 137
    assert pod.asks(other, "echo still") == "still\n"


def test_containers_go_on_without_the_daemon_and_their_ends_are_known(
    secure_daemon: Daemon, secure_client: Client, image: str
) -> None:
    pod = Pod.run(secure_client, image, handler=RUNSC)
    ender = pod.start(
        pod.container("sh", "-c", "echo on; while ! [ -e /tmp/end ]; do sleep 0.1; done; exit 21")
    )
    sleeper = pod.sleeper()
    later = pod.create(pod.container("sh", "-c", "exit 22"))
    pod.asks(ender, "(sleep 1; touch /tmp/end) >/dev/null 2>&1 &")

    secure_daemon.kill9()
    time.sleep(2)
    secure_daemon.start()

    assert secure_client.wait_exited(ender).exit_code == 21
    assert pod.asks(sleeper, "echo still") == "still\n"
    secure_client.start(later)
    assert secure_client.wait_exited(later).exit_code == 22
    assert pod.ends(pod.container("sh", "-c", "exit 23")).exit_code == 23
