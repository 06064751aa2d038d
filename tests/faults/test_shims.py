"""Deaths and hangs of what a pod of kind shim consists of: the shim, the daemon, the process that holds the streams."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.log_text import joined, write_text
from tests.faults.looking import assert_nothing_new
from tests.harness import leaks, procs
from tests.harness.streaming_client import RemoteCommandClient
from tests.integration.scene import Pod, cgroups_of, wait_until, written
from tests.integration.shim.conftest import SHIM, shim_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

MB = 1_000_000
ROTATION_S = 0.1
ROTATIONS = 8
TEXT_MB = 12


@pytest.fixture
def client(crash_daemon: Daemon) -> Iterator[Client]:
    """A daemon with shims, which has to be answered within few seconds, called."""
    with crash_daemon.changed_settings(shim_settings(command_timeout="3s")):
        crash_daemon.restart()
        yield crash_daemon.client
        if crash_daemon.pid is None:
            crash_daemon.start()
        crash_daemon.client.remove_all_pods()
    crash_daemon.restart()


def shim_of(pod: Pod) -> int:
    """The pid of a pod's shim."""
    found = [
        process.pid
        for process in procs.all_processes()
        if "containerd-shim-runc-v2" in process.command and pod.id in process.command
    ]
    assert len(found) == 1
    return found[0]


def holder_of(daemon: Daemon) -> int:
    """The process that holds the streams of that daemon's containers."""
    token = str(daemon.state)
    found = []
    for process in procs.all_processes():
        if "streams_process" in process.command:
            links = procs.descriptors(str(process.pid))
            if any(token in str(link) for link in links):
                found.append(process.pid)
    assert len(found) == 1, found
    return found[0]


def is_not_ready(client: Client, pod: Pod) -> bool:
    return client.pod_status(pod.id).status.state == api.SANDBOX_NOTREADY


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hung, as far as anybody can tell."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if not is_gone(pid):
            os.kill(pid, signal.SIGCONT)


def test_a_dead_shim_ends_its_pod_which_leaves_nothing(client: Client, image: str) -> None:
    pod = Pod.run(client, image, handler=SHIM)
    container, created = pod.sleeper(), pod.create(pod.container("sleep", "1"))

    os.kill(shim_of(pod), signal.SIGKILL)

    status = client.wait_exited(container, timeout_s=20)
    assert (status.exit_code, status.reason) == (137, "MonitorDied")
    assert client.wait_exited(created, timeout_s=20).exit_code == 137
    wait_until(lambda: is_not_ready(client, pod))
    client.stop_pod(pod.id)
    client.remove_pod(pod.id)
    assert cgroups_of(pod.id) == []


def test_shim_and_daemon_die_together(crash_daemon: Daemon, client: Client, image: str) -> None:
    pod = Pod.run(client, image, handler=SHIM)
    container = pod.sleeper()
    shim = shim_of(pod)

    crash_daemon.kill9()
    os.kill(shim, signal.SIGKILL)
    crash_daemon.start()

    assert crash_daemon.client.wait_exited(container, timeout_s=20).exit_code == 137
    wait_until(lambda: is_not_ready(crash_daemon.client, pod))
    crash_daemon.client.remove_pod(pod.id)


def test_a_handler_that_leaves_the_configuration_leaves_nothing_of_its_pods(
    crash_daemon: Daemon, client: Client, image: str, leak_scope: leaks.Scope
) -> None:
    before = leaks.Snapshot.take(leak_scope)
    pod = Pod.run(client, image, handler=SHIM)
    running, created = pod.sleeper(), pod.create(pod.container("true"))
    with crash_daemon.changed_settings({"runtime": {"handlers": {SHIM: None}}}):
        crash_daemon.restart()
        client = crash_daemon.client
        assert {each.id for each in client.containers()} >= {running, created}
        client.stop_pod(pod.id)
        assert client.status(running).status.state == api.CONTAINER_EXITED
        client.remove_pod(pod.id)
        assert_nothing_new(leak_scope, before, "after the removal")
    crash_daemon.restart()


def test_lists_answer_and_a_stop_is_bounded_while_a_shim_hangs(client: Client, image: str) -> None:
    pod = Pod.run(client, image, handler=SHIM)
    container = pod.sleeper()
    other = Pod.run(client, image, handler=SHIM)

    with stopped(shim_of(pod)):
        began = time.monotonic()
        assert container in [each.id for each in client.containers()]
        client.runtime.ListContainerStats(api.ListContainerStatsRequest(), timeout=10)
        with pytest.raises(grpc.RpcError) as refusal:
            client.exec(container, "true", timeout_s=2)
        assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert other.asks(other.sleeper(), "echo fine") == "fine\n"
        client.stop_pod(pod.id)
        assert time.monotonic() - began < 60
        client.remove_pod(pod.id)
    assert cgroups_of(pod.id) == []


def test_streams_are_held_on_when_their_process_dies_and_nothing_is_lost(
    crash_daemon: Daemon, client: Client, image: str
) -> None:
    pod = Pod.run(client, image, handler=SHIM)
    counter = pod.start(
        pod.container(
            "sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; exit 6"
        )
    )
    late = pod.start(
        pod.container("sh", "-c", "while ! [ -e /tmp/on ]; do sleep 0.1; done; echo on; sleep 3600")
    )
    holder = holder_of(crash_daemon)

    os.kill(holder, signal.SIGKILL)
    wait_until(lambda: is_gone(holder))
    pod.asks(late, "touch /tmp/on")

    status = client.wait_exited(counter, timeout_s=20)
    assert status.exit_code == 6
    found = [int(line) for line in written(Path(status.log_path)).split()]
    # What was read and not yet written when it was killed is all that may be missing.
    assert found == sorted(set(found))
    assert found[-1] == 2999
    log = Path(client.status(late).status.log_path)
    wait_until(lambda: written(log) == b"on\n")
    assert holder_of(crash_daemon) != holder


@pytest.mark.parametrize("streams", ["held", "not held"])
def test_what_ends_without_the_daemon_is_known_afterwards(
    crash_daemon: Daemon, client: Client, image: str, streams: str
) -> None:
    pod = Pod.run(client, image, handler=SHIM)
    command = "while ! [ -e /tmp/end ]; do sleep 0.1; done; echo bye; exit 21"
    ender = pod.start(pod.container("sh", "-c", command))
    pod.asks(ender, "(sleep 1; touch /tmp/end) >/dev/null 2>&1 &")
    holder = holder_of(crash_daemon)

    crash_daemon.kill9()
    if streams == "not held":
        os.kill(holder, signal.SIGKILL)
    time.sleep(2)
    crash_daemon.start()

    status = crash_daemon.client.wait_exited(ender)
    assert status.exit_code == 21
    if streams == "held":
        assert written(Path(status.log_path)) == b"bye\n"


def test_execs_of_a_dead_daemon_are_ended(crash_daemon: Daemon, client: Client, image: str) -> None:
    pod = Pod.run(client, image, handler=SHIM)
    container = pod.sleeper()
    url = client.exec_url(container, "sleep", "4242", stdin=True)
    with RemoteCommandClient(url, stdin=True):
        wait_until(lambda: "sleep 4242" in pod.asks(container, "ps"))
        crash_daemon.kill9()
    crash_daemon.start()
    again = Pod(crash_daemon.client, image, pod.id, pod.config)

    wait_until(lambda: "sleep 4242" not in again.asks(container, "ps"))


def test_a_hundred_megabytes_go_each_way(client: Client, image: str) -> None:
    pod = Pod.run(client, image, handler=SHIM)
    container = pod.sleeper()
    block = os.urandom(MB)
    url = client.exec_url(container, "cat", stdin=True)
    with RemoteCommandClient(url, "websocket", protocol="v5.channel.k8s.io", stdin=True) as session:

        def send() -> None:
            for _ in range(100):
                session.write(block)
            session.end_stdin()

        sender = threading.Thread(target=send)
        sender.start()
        session.until_closed()
        sender.join()
    assert session.exit_code == 0
    same = session.stdout == block * 100
    assert same, len(session.stdout)


def test_no_line_is_lost_over_rotations_and_a_new_daemon(
    crash_daemon: Daemon, client: Client, image: str, tmp_path: Path, seed: int
) -> None:
    text = tmp_path / "lines"
    write_text(text, TEXT_MB * MB, seed)
    config = client.pod_config()
    pod = client.run_pod(config, handler=SHIM)
    mount = api.Mount(container_path="/text", host_path=str(tmp_path), readonly=True)
    command = (
        "all() { while ! [ -e /text/enough ]; do cat /text/lines; done; }; all & all >&2; wait"
    )
    wanted = client.container_config(image, ["sh", "-c", command], mounts=[mount])
    container = client.run(pod, wanted, config)
    log = Path(client.status(container).status.log_path)
    files: list[Path] = []
    killed = False
    while True:
        time.sleep(ROTATION_S)
        rotated = log.with_name(f"{log.name}.{len(files)}")
        if not log.exists():  # the reopening was cut off
            pass
        else:
            log.rename(rotated)
            files.append(rotated)
        if len(files) == ROTATIONS:
            (tmp_path / "enough").touch()
        if len(files) == ROTATIONS // 2 and not killed:
            killed = True
            crash_daemon.kill9()
            crash_daemon.start()
        try:
            crash_daemon.client.runtime.ReopenContainerLog(
                api.ReopenContainerLogRequest(container_id=container), timeout=10
            )
        except grpc.RpcError as refusal:
            if refusal.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            break
    files += [log] if log.exists() else []
    assert crash_daemon.client.wait_exited(container, timeout_s=30).exit_code == 0
    lines = text.read_bytes()
    for stream in ("stdout", "stderr"):
        found = joined(files, stream)
        same = found == lines * (len(found) // len(lines))
        assert same, stream
        assert found, stream
