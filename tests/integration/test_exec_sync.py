"""ExecSync on real parts: what comes back, what is bounded, and who dies at the deadline."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import (
    Pod,
    container_info,
    namespace,
    processes_running,
    refused,
    unique_seconds,
    wait_until,
)

if TYPE_CHECKING:
    from tests.harness.client import Client

pytestmark = pytest.mark.integration

MIB = 1 << 20


def test_output_streams_and_exit_code_come_back_apart(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    answer = client.exec(pod.sleeper(), "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 3)


def test_output_is_bytes_and_arrives_unchanged(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    escapes = "".join(f"\\{byte:03o}" for byte in range(256))
    assert client.exec(pod.sleeper(), "printf", escapes).stdout == bytes(range(256))


def test_command_killed_by_a_signal_has_its_code(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    assert client.exec(container, "sh", "-c", "kill -KILL $$").exit_code == 137
    assert client.exec(container, "sh", "-c", "kill -TERM $$").exit_code == 143


def test_command_runs_as_the_container_does(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.envs.add(key="COLOUR", value=b"blue")
    config.working_dir = "/var"
    config.linux.security_context.run_as_user.value = 1000
    config.linux.security_context.no_new_privs = True
    container = pod.sleeper(config)
    said = pod.asks(container, "id -u; pwd; echo $COLOUR; grep NoNewPrivs /proc/self/status")
    assert said.split() == ["1000", "/var", "blue", "NoNewPrivs:", "1"]
    fields = "grep -E '^(Cap|Groups|Seccomp)' /proc/{}/status"
    everyone = f"pid=$(pidof sleep); {fields.format('$pid')}; echo; {fields.format('self')}"
    own, exec_ = pod.asks(container, everyone).split("\n\n")
    assert own.split() == exec_.split()


def test_standard_input_is_empty(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    answer = client.exec(pod.sleeper(), "cat", timeout_s=5)
    assert (answer.stdout, answer.exit_code) == (b"", 0)


def test_command_gets_no_descriptor_but_its_streams(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    said = pod.asks(pod.sleeper(), "ls /proc/$$/fd; :")
    # A shell may keep a descriptor of its own, from 10 on.
    assert [fd for fd in said.split() if int(fd) < 10] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("no-such-program", 127, b"not found"),
        ("/no/such/path", 127, b"no such file"),
        ("/etc/passwd", 126, b"permission denied"),
        ("/etc", 126, b""),
    ],
)
def test_command_that_cannot_run_has_failed_as_in_a_shell(
    client: Client, image: str, command: str, code: int, words: bytes
) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    answer = client.exec(container, command)
    assert (answer.stdout, answer.exit_code) == (b"", code)
    assert command.encode() in answer.stderr
    assert words in answer.stderr
    assert client.exec(container, "true").exit_code == 0


def test_deadline_kills_the_command_its_children_and_its_session(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    each = [unique_seconds() for _ in range(4)]
    script = "sleep {} & (sleep {}; :) & busybox setsid sleep {} & sleep {}".format(*each)
    started = time.monotonic()
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, container, "1 s"):
        client.exec(container, "sh", "-c", script, timeout_s=1)
    assert 1 <= time.monotonic() - started < 4
    wait_until(lambda: not any(map(processes_running, each)), timeout_s=2)
    assert client.status(container).status.state == api.CONTAINER_RUNNING


def test_deadline_holds_for_a_command_that_ignores_signals(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    seconds = unique_seconds()
    script = f"trap '' TERM INT HUP; sleep {seconds}; :"
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, container):
        client.exec(container, "sh", "-c", script, timeout_s=1)
    wait_until(lambda: not processes_running(seconds), timeout_s=2)


def test_grandchild_that_holds_the_output_holds_nobody_up(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    started = time.monotonic()
    answer = client.exec(pod.sleeper(), "sh", "-c", "sleep 30 & echo done", timeout_s=20)
    assert (answer.stdout, answer.exit_code) == (b"done\n", 0)
    assert time.monotonic() - started < 5


def test_20_mebibytes_of_output_are_cut_to_what_an_answer_may_hold(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    answer = client.exec(pod.sleeper(), "sh", "-c", "yes | head -c 20971520; exit 4", timeout_s=30)
    assert answer.exit_code == 4
    assert 16 * MIB - 65536 <= len(answer.stdout) <= 16 * MIB
    assert set(answer.stdout) == set(b"y\n")


def test_both_streams_are_cut_so_that_the_answer_fits(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    script = "yes out | head -c 20971520; yes err | head -c 20971520 >&2"
    answer = client.exec(pod.sleeper(), "sh", "-c", script, timeout_s=30)
    assert answer.exit_code == 0
    assert answer.stdout.startswith(b"out\n")
    assert answer.stderr.startswith(b"err\n")
    assert 15 * MIB <= len(answer.stdout) + len(answer.stderr) <= 16 * MIB


def test_200_execs_at_once_give_200_answers(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()

    def run(number: int) -> tuple[bytes, bytes, int]:
        script = f"echo out {number}; echo err {number} >&2; exit {number}"
        answer = client.exec(container, "sh", "-c", script, timeout_s=60)
        return answer.stdout, answer.stderr, answer.exit_code

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(run, range(200)))
    assert answers == [(b"out %d\n" % n, b"err %d\n" % n, n) for n in range(200)]


def test_container_that_no_runtime_can_enter_holds_up_the_execs_of_no_other(
    client: Client, image: str
) -> None:
    """Runtimes read its /etc/passwd, and so wait as long as they may; there are only so many starts at one time."""
    pod = Pod.run(client, image)
    hanging, other = pod.sleeper(), pod.sleeper()
    pod.asks(hanging, "rm -f /etc/passwd; mkfifo /etc/passwd")
    with ThreadPoolExecutor(40) as threads:
        calls = [threads.submit(client.exec, hanging, "true", timeout_s=4) for _ in range(40)]
        time.sleep(1)
        for _ in range(5):
            started = time.monotonic()
            assert client.exec(other, "true").exit_code == 0
            assert time.monotonic() - started < 2
        for call in calls:
            assert isinstance(error := call.exception(), grpc.RpcError)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_exec_needs_a_running_container(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.create(pod.container("sleep", "3600"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "created"):
        client.exec(container, "true")
    client.start(container)
    client.stop(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "exited"):
        client.exec(container, "true")


def test_exec_under_way_ends_with_its_container(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    seconds = unique_seconds()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.exec, container, "sleep", seconds, timeout_s=30)
        wait_until(lambda: processes_running(seconds))
        client.stop(container)
        assert running.result(timeout=10).exit_code == 137


def test_command_dies_when_its_caller_goes_away(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    seconds = unique_seconds()
    request = api.ExecSyncRequest(container_id=container, cmd=["sleep", seconds], timeout=60)
    call = client.runtime.ExecSync.future(request)
    wait_until(lambda: processes_running(seconds))
    call.cancel()
    wait_until(lambda: not processes_running(seconds), timeout_s=5)


def test_exec_sees_the_containers_namespaces(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    sleep = container_info(client, container)["pid"]
    kinds = ("mnt", "net", "ipc", "uts", "pid")
    said = pod.asks(container, f"for k in {' '.join(kinds)}; do readlink /proc/self/ns/$k; done")
    assert said.split() == [namespace(kind, sleep) for kind in kinds]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (api.ExecSyncRequest(container_id="0" * 64), ("cmd",)),
        (api.ExecSyncRequest(cmd=["true"]), ("container_id",)),
        (api.ExecSyncRequest(container_id="0" * 64, cmd=["true"], timeout=-1), ("timeout",)),
    ],
)
def test_request_that_lacks_something_is_refused_by_name(
    client: Client, request_: api.ExecSyncRequest, words: tuple[str, ...]
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *words):
        client.runtime.ExecSync(request_, timeout=10)
