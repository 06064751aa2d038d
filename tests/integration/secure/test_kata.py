"""Pods of kata-runtime 1.x, by the contract that its stand-in keeps with all its bad habits."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness.isolation import KATA_DIRS
from tests.harness.slowness import SLOWNESS
from tests.harness.streaming_client import RemoteCommandClient
from tests.integration.scene import (
    Pod,
    container_info,
    processes_running,
    refused,
    unique_seconds,
    wait_until,
    written,
)
from tests.integration.secure.conftest import KATA, KataConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

BOUND_S = 40.0 * SLOWNESS
"""For a Stop or a Remove whose runtime does not answer: its deadline is three seconds here."""


def log_of(client: Client, container: str) -> Path:
    return Path(client.status(container).status.log_path)


def kept() -> list[str]:
    """What there is in the runtime's own directories."""
    return [str(entry) for directory in KATA_DIRS for entry in directory.iterdir()]


def process_of(name: str, object_id: str) -> int:
    """The pid of the hypervisor or another helper, by what it is called."""
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is(entry, name, object_id)
    ]
    first = [pid for pid in found if not any(pid in children(other) for other in found)]
    assert len(first) == 1, f"{name}: {found}"
    return first[0]


def _is(entry: Path, name: str, object_id: str) -> bool:
    try:
        line = (entry / "cmdline").read_bytes()
    except OSError:
        return False
    return line.startswith(name.encode()) and object_id.encode() in line


def pod_is(client: Client, pod: Pod, state: api.PodSandboxState.ValueType) -> bool:
    return client.pod_status(pod.id).status.state == state


def is_on(client: Client, container: str) -> bool:
    return written(log_of(client, container)) == b"on\n"


def take_away(client: Client, pod: Pod) -> None:
    """Stop and Remove, within a bound, and nothing is left in the runtime's directories."""
    began = time.monotonic()
    client.stop_pod(pod.id)
    client.remove_pod(pod.id)
    assert time.monotonic() - began < BOUND_S
    assert kept() == []
    assert client.pods() == []


def test_a_pod_of_three_containers_lives_and_goes(kata_client: Client, image: str) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    talker = pod.start(pod.container("sh", "-c", "echo out; echo err >&2; sleep 3600"))
    ender = pod.ends(pod.container("sh", "-c", "exit 3"))
    sleeper = pod.sleeper()

    wait_until(lambda: written(log_of(kata_client, talker), "stderr") == b"err\n")
    assert written(log_of(kata_client, talker)) == b"out\n"
    assert (ender.exit_code, ender.reason) == (3, "Error")
    answer = kata_client.exec(sleeper, "sh", "-c", "echo a; echo b >&2; exit 7")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"a\n", b"b\n", 7)
    missing = kata_client.exec(sleeper, "no-such-program")
    assert (missing.exit_code, b"executable file not found" in missing.stderr) == (127, True)
    take_away(kata_client, pod)


def test_streams_of_an_exec_come_in_the_attached_form_and_a_terminal_does(
    kata_client: Client, image: str
) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    container = pod.sleeper()

    url = kata_client.exec_url(container, "sh", "-c", "cat; echo e >&2; exit 9", stdin=True)
    with RemoteCommandClient(url, stdin=True) as session:
        session.write(b"in\n")
        session.end_stdin()
        session.until_closed()
    assert (session.stdout, session.stderr, session.exit_code) == (b"in\n", b"e\n", 9)

    url = kata_client.exec_url(container, "sh", "-c", "test -t 0 && exit 6", stdin=True, tty=True)
    with RemoteCommandClient(url, stdin=True, tty=True) as session:
        session.until_closed()
    assert session.exit_code == 6


@pytest.mark.parametrize(
    "first",
    [
        "trap '' TERM HUP INT XCPU VTALRM;",
        pytest.param("rm /bin/sh;", marks=pytest.mark.slow),
    ],
)
def test_an_exec_past_its_deadline_ends_in_the_guest(
    kata_client: Client, image: str, first: str
) -> None:
    """With all that it has started, whatever they ignore; where there is no shell, by a signal."""
    pod = Pod.run(kata_client, image, handler=KATA)
    container, seconds = pod.sleeper(), unique_seconds()
    behind = f"sleep {seconds} &" if "trap" in first else ""
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "within 1 s"):
        kata_client.exec(
            container, "sh", "-c", f"{first} {behind} exec sleep {seconds}", timeout_s=1
        )
    wait_until(lambda: not processes_running(seconds))
    assert kata_client.exec(container, "echo", "still").stdout == b"still\n"


def test_a_stop_signal_that_would_end_the_shim_reaches_the_container(
    kata_client: Client, image: str
) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    config = pod.container(
        "sh", "-c", "trap 'echo bye; exit 8' QUIT; echo on; while :; do sleep 0.1; done"
    )
    config.stop_signal = api.SIGNAL_SIGQUIT
    container = pod.start(config)
    wait_until(partial(is_on, kata_client, container))
    kata_client.stop(container, timeout_s=20)
    assert kata_client.status(container).status.exit_code == 8
    assert written(log_of(kata_client, container)) == b"on\nbye\n"


def test_statistics_and_limits_go_through_the_runtime(kata_client: Client, image: str) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    container = pod.sleeper()

    def usage() -> api.ContainerStats:
        request = api.ContainerStatsRequest(container_id=container)
        return kata_client.runtime.ContainerStats(request, timeout=10).stats

    wait_until(lambda: usage().memory.usage_bytes.value == 5 << 20)
    assert usage().memory.working_set_bytes.value == (5 << 20) - (1 << 19)
    kata_client.runtime.UpdateContainerResources(
        api.UpdateContainerResourcesRequest(
            container_id=container, linux=api.LinuxContainerResources(cpu_shares=512)
        ),
        timeout=10,
    )
    shown = kata_client.status(container).status.resources.linux
    assert shown.cpu_shares == 512


def test_a_grace_period_is_longer_than_the_runtimes_own(
    kata_client: Client, kata_config: KataConfig, image: str
) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    script = "trap 'sleep 2; echo bye; exit 8' TERM; echo on; while :; do sleep 0.1; done"
    polite = pod.start(pod.container("sh", "-c", script))
    deaf = pod.start(
        pod.container("sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.1; done")
    )
    for each in (polite, deaf):
        wait_until(partial(is_on, kata_client, each))

    kata_client.stop(polite, timeout_s=20)  # the runtime's own TERM would kill after half a second
    kata_client.stop(deaf, timeout_s=1)

    assert kata_client.status(polite).status.exit_code == 8
    assert kata_client.status(deaf).status.exit_code == 137
    assert pod.asks(pod.sleeper(), "echo still") == "still\n"


def test_a_created_container_that_was_never_started_leaves_nothing(
    kata_client: Client, image: str
) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    created = pod.create(pod.container("sleep", "1"))
    kata_client.remove(created)
    assert not [name for name in kept() if created in name]
    broken = pod.create(pod.container("no-such-program"))
    with pytest.raises(grpc.RpcError) as raised:
        kata_client.start(broken)
    assert "executable file not found" in str(raised.value)
    take_away(kata_client, pod)


def test_sizes_out_of_range_and_the_nodes_namespaces_are_refused(kata_client: Client) -> None:
    client = kata_client
    config = client.pod_config()
    config.annotations["com.github.containers.virtcontainers.sandbox_mem"] = "512M"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "sandbox_mem", "between 1G and 256G"):
        client.run_pod(config, handler=KATA)
    for field in ("network", "pid", "ipc"):
        config = client.pod_config()
        setattr(config.linux.security_context.namespace_options, field, api.NODE)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, field):
            client.run_pod(config, handler=KATA)
    assert kept() == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["kill", "delete", "state", "unplug"])
def test_a_runtime_that_hangs_holds_up_neither_stop_nor_remove(
    kata_client: Client, kata_config: KataConfig, image: str, command: str
) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    for _ in range(2):
        pod.sleeper()
    kata_config.write(hang=command)
    take_away(kata_client, pod)


def test_one_container_that_cannot_be_killed_ends_its_pod(
    kata_client: Client, kata_config: KataConfig, image: str
) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    stuck, other = pod.sleeper(), pod.sleeper()
    kata_config.write(hang="kill")
    kata_client.stop(stuck, timeout_s=0)
    assert kata_client.status(stuck).status.state == api.CONTAINER_EXITED
    wait_until(lambda: pod_is(kata_client, pod, api.SANDBOX_NOTREADY))
    kata_client.wait_exited(other)
    take_away(kata_client, pod)


def test_a_hypervisor_that_dies_ends_the_pod(kata_client: Client, image: str) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    container = pod.sleeper()
    os.kill(process_of("qemu", pod.id), signal.SIGKILL)
    assert kata_client.wait_exited(container).exit_code == 1
    wait_until(lambda: pod_is(kata_client, pod, api.SANDBOX_NOTREADY))
    take_away(kata_client, pod)


def test_a_hypervisor_that_hangs_holds_up_neither_lists_nor_stop(
    kata_client: Client, image: str
) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    container = pod.sleeper()
    guest = process_of("qemu", pod.id)
    for pid in (guest, *children(guest)):
        os.kill(pid, signal.SIGSTOP)
    assert [each.id for each in kata_client.containers()] == [container]
    take_away(kata_client, pod)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_shim_that_is_killed_is_an_exit_and_the_rest_goes_on(
    kata_client: Client, image: str
) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    container, other = pod.sleeper(), pod.sleeper()
    os.kill(int(container_info(kata_client, container)["pid"]), signal.SIGKILL)
    assert kata_client.wait_exited(container).exit_code == 137
    assert pod.asks(other, "echo still") == "still\n"
    take_away(kata_client, pod)


def test_a_monitor_that_dies_takes_its_container_along(kata_client: Client, image: str) -> None:
    pod = Pod.run(kata_client, image, handler=KATA)
    container, other = pod.sleeper(), pod.sleeper()
    os.kill(int(container_info(kata_client, container)["monitorPid"]), signal.SIGKILL)
    assert kata_client.wait_exited(container).exit_code == 137
    assert pod.asks(other, "echo still") == "still\n"
    take_away(kata_client, pod)


def test_creations_that_hang_are_undone(
    kata_daemon: Daemon, kata_config: KataConfig, image: str
) -> None:
    client = kata_daemon.client
    with hasty(kata_daemon):
        kata_config.write(hang="boot")
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "within 2 s"):
            Pod.run(client, image, handler=KATA)
        assert kept() == []
        assert client.pods() == []
        kata_config.write()
        pod = Pod.run(client, image, handler=KATA)
        kata_config.write(hang="create")
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "within 2 s"):
            pod.create(pod.container("sleep", "1"))
        kata_config.write()
        take_away(client, pod)


@contextmanager
def hasty(daemon: Daemon) -> Iterator[None]:
    """Creations have two seconds, for the block."""
    with daemon.changed_settings({"runtime": {"start_timeout": "2s"}}):
        daemon.restart()
        yield
    daemon.restart()


@pytest.mark.parametrize("what", ["sandbox", "container"])
def test_a_runtime_that_is_killed_in_the_middle_of_a_creation_leaves_nothing(
    kata_client: Client, kata_config: KataConfig, image: str, what: str
) -> None:
    """What it has begun it could not delete itself."""
    pod = None if what == "sandbox" else Pod.run(kata_client, image, handler=KATA)
    kata_config.write(hang="boot" if pod is None else "create")
    with ThreadPoolExecutor(1) as pool:

        def make() -> object:
            if pod is None:
                return Pod.run(kata_client, image, handler=KATA)
            return pod.create(pod.container("true"))

        making = pool.submit(make)
        wait_until(lambda: len(creating(kata_config)) == 1)
        os.kill(creating(kata_config)[0], signal.SIGKILL)
        with pytest.raises(grpc.RpcError):
            making.result()
    kata_config.write()
    assert kata_client.containers() == []
    if pod is None:
        assert (kept(), kata_client.pods()) == ([], [])
    else:
        assert pod.asks(pod.sleeper(), "echo still") == "still\n"
        take_away(kata_client, pod)


def creating(config: KataConfig) -> list[int]:
    """The pids of the runtime's `create` commands, which have come as far as what hangs."""
    wanted = (str(config.file), "create")
    found = [set(processes_running(each)) for each in wanted]
    monitors = set(processes_running("--exit-dir"))
    return sorted(found[0] & found[1] - monitors) if any(kept()) else []


@pytest.mark.slow
def test_pods_of_a_handler_that_left_the_configuration_go(kata_daemon: Daemon, image: str) -> None:
    pod = Pod.run(kata_daemon.client, image, handler=KATA)
    pod.sleeper()
    with kata_daemon.changed_settings({"runtime": {"handlers": {KATA: None}}}):
        kata_daemon.restart()
        take_away(kata_daemon.client, pod)
    kata_daemon.restart()


def test_the_daemon_may_come_and_go_and_ends_are_known(kata_daemon: Daemon, image: str) -> None:
    client = kata_daemon.client
    pod = Pod.run(client, image, handler=KATA)
    ender = pod.start(pod.container("sh", "-c", "while ! [ -e /end ]; do sleep 0.1; done; exit 21"))
    sleeper, later = pod.sleeper(), pod.create(pod.container("sh", "-c", "exit 22"))
    pod.asks(ender, "(sleep 1; touch /end) >/dev/null 2>&1 </dev/null &")

    kata_daemon.kill9()
    wait_until(lambda: not processes_running(f"{ender}"))
    kata_daemon.start()

    assert client.wait_exited(ender).exit_code == 21
    assert pod.asks(sleeper, "echo still") == "still\n"
    client.start(later)
    assert client.wait_exited(later).exit_code == 22
    take_away(client, pod)


def test_an_exec_of_a_former_daemon_is_ended(kata_daemon: Daemon, image: str) -> None:
    client = kata_daemon.client
    pod = Pod.run(client, image, handler=KATA)
    container = pod.sleeper()
    seconds = unique_seconds()
    script = f"trap '' TERM; echo on; sleep {seconds} & exec sleep {seconds}"
    url = client.exec_url(container, "sh", "-c", script)
    with RemoteCommandClient(url) as session:
        session.until(lambda: session.stdout == b"on\n")
        kata_daemon.kill9()
    kata_daemon.start()
    wait_until(lambda: not processes_running(seconds))
    take_away(client, pod)


@pytest.mark.slow
def test_nothing_survives_a_wipe_without_the_daemon(kata_daemon: Daemon, image: str) -> None:
    client = kata_daemon.client
    pod = Pod.run(client, image, handler=KATA)
    pod.sleeper()
    kata_daemon.kill9()
    kata_daemon.cli("wipe", "--yes")
    assert kept() == []
    kata_daemon.start()
    assert client.pods() == []
