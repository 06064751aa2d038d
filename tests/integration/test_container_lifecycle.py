"""A container's life on real parts: from created to exited, how its end is told, how it is found and taken away."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness import procs
from tests.integration.scene import (
    Pod,
    cgroups_of,
    container_info,
    log_lines,
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

UNKNOWN_ID = "0" * 64
MIB = 1 << 20


# --- from created to exited --------------------------------------------------------------------------------------


def test_states_and_times_follow_each_other(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    before = time.time_ns()
    container = pod.create(pod.container("sleep", "3600", name="worker"))
    created = client.status(container).status
    assert created.state == api.CONTAINER_CREATED
    assert before <= created.created_at <= time.time_ns()
    assert created.started_at == created.finished_at == 0
    client.start(container)
    running = client.status(container).status
    assert running.state == api.CONTAINER_RUNNING
    assert created.created_at <= running.started_at <= time.time_ns()
    assert running.finished_at == 0
    client.stop(container)
    exited = client.status(container).status
    assert exited.state == api.CONTAINER_EXITED
    assert running.started_at <= exited.finished_at <= time.time_ns()
    assert exited.created_at == created.created_at


def test_container_asked_for_by_an_images_id_is_shown_under_the_images_name(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("true")
    image_id = client.image_id(image)
    assert image_id is not None
    config.image.image = image_id
    config.image.user_specified_image = image
    status = client.status(pod.create(config)).status
    assert status.image.image == image
    assert status.image.user_specified_image == image
    (listed,) = client.containers()
    assert listed.image.image == listed.image_id == image_id


def test_status_says_what_the_container_was_made_from(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("true", name="worker")
    config.metadata.attempt = 3
    config.labels["app"] = "web"
    config.annotations["note"] = "kept\nas it is"
    config.mounts.add(container_path="/mnt", host_path="/usr", readonly=True)
    config.linux.resources.cpu_shares = 100
    container = pod.create(config)
    status = client.status(container).status
    (known,) = client.images.ListImages(
        api.ListImagesRequest(filter=api.ImageFilter(image=api.ImageSpec(image=image)))
    ).images
    assert status.metadata == config.metadata
    assert status.image.image == image
    assert status.image_id == known.id
    assert status.image_ref in (known.id, *known.repo_digests)
    assert dict(status.labels) == dict(config.labels)
    assert dict(status.annotations) == dict(config.annotations)
    assert list(status.mounts) == list(config.mounts)
    assert status.resources.linux.cpu_shares == 100
    assert status.log_path == f"{pod.config.log_directory}/{config.log_path}"
    (entry,) = client.containers()
    assert (entry.id, entry.pod_sandbox_id, entry.image_id) == (container, pod.id, known.id)
    assert (entry.metadata, dict(entry.labels)) == (config.metadata, dict(config.labels))


def test_verbose_status_has_the_process_and_the_runtime_spec(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    found = container_info(client, container)
    assert found["sandboxID"] == pod.id
    assert found["runtimeSpec"]["process"]["args"] == ["sleep", "3600"]
    # Started means told to go on: a moment later it is the container's own program.
    command_line = Path(f"/proc/{found['pid']}/cmdline")
    wait_until(lambda: command_line.read_bytes() == b"sleep\x003600\0")
    assert Path(f"/proc/{found['monitorPid']}/comm").read_text() == "conmon\n"


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("exit 0", 0, "Completed"),
        ("exit 7", 7, "Error"),
        ("exit 255", 255, "Error"),
        ("kill -KILL $$", 137, "Error"),
        ("kill -TERM $$", 143, "Error"),
    ],
)
def test_exit_is_told_with_its_code_and_a_reason(
    client: Client, image: str, script: str, code: int, reason: str
) -> None:
    pod = Pod.run(client, image)
    status = pod.ends(pod.container("sh", "-c", script))
    assert (status.exit_code, status.reason) == (code, reason)


def test_immediate_exits_are_never_lost(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    with ThreadPoolExecutor(4) as pool:
        configs = [pod.container("sh", "-c", f"exit {number}") for number in range(12)]
        codes = [status.exit_code for status in pool.map(pod.ends, configs)]
    assert codes == list(range(12))


def test_container_killed_from_outside_has_the_code_of_the_signal(
    client: Client, image: str
) -> None:
    container = Pod.run(client, image).sleeper()
    os.kill(container_info(client, container)["pid"], signal.SIGKILL)
    status = client.wait_exited(container)
    assert (status.exit_code, status.reason) == (137, "Error")


def test_container_over_its_memory_limit_is_oom_killed(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
    config.linux.resources.memory_limit_in_bytes = 32 * MIB
    status = pod.ends(config)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("no-such-program", "executable file not found in $PATH"),
        ("/no/such/path", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
        ("/etc", ""),
    ],
)
def test_program_that_cannot_run_fails_the_start_with_the_runtimes_words(
    client: Client, daemon: Daemon, image: str, program: str, words: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container(program)
    container = pod.create(config)
    assert client.status(container).status.state == api.CONTAINER_CREATED
    assert cgroups_of(container) == []
    assert not (daemon.state / "runtime/runc" / container).exists()
    assert pod.create(config) == container, "a retry finds it"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, program, words):
        client.start(container)
    status = client.status(container).status
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 128)
    assert status.reason == "StartError"
    assert program in status.message
    assert words in status.message
    assert status.created_at <= status.finished_at <= time.time_ns()
    assert status.started_at == 0
    assert Path(status.log_path).read_bytes() == b""
    client.remove(container)
    assert client.containers() == []


def test_container_without_a_program_is_like_any_other_until_its_start(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    pod = Pod.run(client, image)
    first, second = (pod.create(pod.container("no-such-program")) for _ in range(2))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, first, "not running"):
        client.exec(first, "true")
    stats = client.runtime.ContainerStats(api.ContainerStatsRequest(container_id=first), timeout=10)
    assert stats.stats.attributes.id == first
    resources = api.LinuxContainerResources(cpu_shares=333)
    client.runtime.UpdateContainerResources(
        api.UpdateContainerResourcesRequest(container_id=first, linux=resources), timeout=10
    )
    crash_daemon.kill9()
    crash_daemon.start()
    status = client.status(first).status
    assert status.state == api.CONTAINER_CREATED
    assert status.resources.linux.cpu_shares == 333
    client.stop(second, timeout_s=30)
    assert client.status(second).status.reason == "StartError"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "no-such-program"):
        client.start(first)
    assert client.status(first).status.reason == "StartError"


@pytest.mark.parametrize("script", ["#!/no/such/interpreter\n", "no script at all\0"])
def test_program_that_the_kernel_does_not_take_ends_by_itself_and_says_why(
    client: Client, image: str, tmp_path: Path, script: str
) -> None:
    (tmp_path / "program").write_text(script)
    (tmp_path / "program").chmod(0o755)
    tmp_path.chmod(0o755)
    pod = Pod.run(client, image)
    config = pod.container("/mnt/program")
    config.mounts.add(container_path="/mnt", host_path=str(tmp_path))
    status = pod.ends(config)
    assert status.exit_code != 0
    assert status.reason == "Error"
    assert b"exec /mnt/program: " in written(Path(status.log_path), "stderr")


EATS_MEMORY = "dd if=/dev/zero of=/dev/null bs=200M count=1"


@pytest.mark.parametrize("code", [0, 3])
def test_container_whose_child_is_oom_killed_says_so_however_it_ends(
    client: Client, image: str, code: int
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("sh", "-c", f"{EATS_MEMORY}; exit {code}")
    config.linux.resources.memory_limit_in_bytes = 32 * MIB
    status = pod.ends(config)
    assert (status.exit_code, status.reason) == (code, "OOMKilled")


def test_container_that_goes_on_after_an_oom_kill_and_is_stopped_says_so(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container(
        "sh", "-c", f"trap 'exit 5' TERM; {EATS_MEMORY}; echo on; sleep 60 & wait"
    )
    config.linux.resources.memory_limit_in_bytes = 32 * MIB
    container = pod.start(config)
    log = Path(client.status(container).status.log_path)
    wait_until(lambda: b"on\n" in written(log))
    client.stop(container, timeout_s=10)
    status = client.status(container).status
    assert (status.exit_code, status.reason) == (5, "OOMKilled")


def test_command_of_an_exec_that_is_oom_killed_counts_as_the_containers(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    # Its first process needs no memory while it waits: a second kill would hit the process that asked for some.
    config = pod.container("sh", "-c", "mkfifo /over; read _ </over")
    config.linux.resources.memory_limit_in_bytes = 32 * MIB
    container = pod.start(config)
    assert client.exec(container, *EATS_MEMORY.split()).exit_code == 137
    pod.asks(container, "echo >/over")
    status = client.wait_exited(container)
    assert (status.exit_code, status.reason) == (0, "OOMKilled")


def test_container_that_a_limit_of_its_pod_hits_says_so_and_its_neighbour_does_not(
    client: Client, image: str
) -> None:
    asked = client.pod_config()
    asked.linux.cgroup_parent += f"/{asked.metadata.name}"
    pod = Pod.run(client, image, asked)
    neighbour = pod.sleeper(pod.container(name="neighbour"))
    (pods_cgroup,) = {cgroup.parent for cgroup in cgroups_of(pod.id) if limit_file(cgroup.parent)}
    limit_file(pods_cgroup)[0].write_text(str(48 * MIB))
    hit = pod.ends(pod.container("sh", "-c", f"{EATS_MEMORY}; exit 1", name="hit"))
    client.stop(neighbour, timeout_s=0)
    assert (hit.exit_code, hit.reason) == (1, "OOMKilled")
    assert client.status(neighbour).status.reason == "Error"
    ours = {cgroup.parent for cgroup in cgroups_of(pod.id)}
    client.remove_pod(pod.id)
    for each in ours:  # made by whoever names it, so nobody else takes it away
        each.rmdir()


def limit_file(cgroup: Path) -> list[Path]:
    """Where the memory of a cgroup is limited; nothing in hierarchies that don't account it."""
    files = (cgroup / name for name in ("memory.limit_in_bytes", "memory.max"))
    return [file for file in files if file.exists()]


def test_monitor_that_dies_takes_its_container_along(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    found = container_info(client, container)
    os.kill(found["monitorPid"], signal.SIGKILL)
    status = client.wait_exited(container)
    assert (status.exit_code, status.reason) == (137, "MonitorDied")
    process = procs.read_process(found["pid"])
    assert process is None or process.zombie, "the container's process outlived its monitor"


def test_exited_container_costs_nothing_but_its_files(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.start(pod.container("true"))
    client.wait_exited(container)
    # The runtime's `delete`, which names it, ends a moment after the cgroup that it removes.
    wait_until(lambda: not cgroups_of(container) and not processes_running(container))


# --- how it is found ---------------------------------------------------------------------------------------------


def listed(client: Client, filter_: api.ContainerFilter) -> list[str]:
    request = api.ListContainersRequest(filter=filter_)
    return [entry.id for entry in client.runtime.ListContainers(request, timeout=10).containers]


def test_filters_choose_by_pod_state_label_and_beginning_of_the_id(
    client: Client, image: str
) -> None:
    pod, other = Pod.run(client, image), Pod.run(client, image)
    web = pod.container()
    web.labels["app"] = "web"
    running = pod.sleeper(web)
    created = pod.create(pod.container("true"))
    elsewhere = other.create(other.container("true"))
    state = api.ContainerStateValue(state=api.CONTAINER_CREATED)
    assert listed(client, api.ContainerFilter()) == [running, created, elsewhere]
    assert listed(client, api.ContainerFilter(pod_sandbox_id=pod.id)) == [running, created]
    assert listed(client, api.ContainerFilter(pod_sandbox_id=pod.id[:12], state=state)) == [created]
    assert listed(client, api.ContainerFilter(state=state)) == [created, elsewhere]
    assert listed(client, api.ContainerFilter(label_selector={"app": "web"})) == [running]
    assert listed(client, api.ContainerFilter(label_selector={"app": "db"})) == []
    assert listed(client, api.ContainerFilter(id=elsewhere[:13])) == [elsewhere]


def test_beginning_of_an_id_is_enough(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = client.create(
        pod.id[:12], pod.container("sh", "-c", "trap 'exit 0' TERM; sleep 60"), pod.config
    )
    client.start(container[:12])
    assert client.status(container[:12]).status.id == container
    assert client.exec(container[:12], "true").exit_code == 0
    client.stop(container[:12])
    client.remove(container[:12])
    assert client.containers() == []


# --- retries -----------------------------------------------------------------------------------------------------


def test_same_request_again_gives_the_same_container(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("true")
    assert pod.create(config) == pod.create(config)
    with ThreadPoolExecutor(4) as pool:
        again = pod.container("false")
        made = set(pool.map(pod.create, [again] * 4))
    assert len(made) == 1
    assert len(client.containers()) == 2


def test_different_request_for_the_same_name_is_told_who_holds_it(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("true")
    container = pod.create(config)
    config.command[:] = ["false"]
    with refused(grpc.StatusCode.ALREADY_EXISTS, container):
        pod.create(config)
    config.command[:] = ["true"]
    client.start(container)
    with refused(grpc.StatusCode.ALREADY_EXISTS, container):
        pod.create(config)
    config.metadata.attempt = 1
    assert pod.create(config) != container


def test_creation_that_its_client_gave_up_is_finished_for_the_retry(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("true")
    request = api.CreateContainerRequest(
        pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config
    )
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        client.runtime.CreateContainer(request, timeout=0.01)
    container = pod.create(config)
    assert [entry.id for entry in client.containers()] == [container]


# --- the end -----------------------------------------------------------------------------------------------------


def test_only_a_created_container_can_be_started(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "running"):
        client.start(container)
    client.stop(container)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, "exited"):
        client.start(container)


def ready(pod: Pod, script: str) -> str:
    """A container that has run `script` as far as its `echo ready`."""
    container = pod.start(pod.container("sh", "-c", script))
    log = Path(pod.client.status(container).status.log_path)
    wait_until(lambda: any(line.text == b"ready" for line in log_lines(log)))
    return container


def test_container_that_heeds_the_stop_signal_ends_as_it_likes(client: Client, image: str) -> None:
    container = ready(
        Pod.run(client, image), "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    )
    started = time.monotonic()
    client.stop(container, timeout_s=20)
    status = client.status(container).status
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 7)
    assert time.monotonic() - started < 5


def test_container_that_ignores_the_stop_signal_is_killed_after_its_grace(
    client: Client, image: str
) -> None:
    container = ready(
        Pod.run(client, image), "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    )
    started = time.monotonic()
    client.stop(container, timeout_s=1)
    assert 1 <= time.monotonic() - started < 4
    status = client.status(container).status
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)
    assert status.reason != "OOMKilled"


def test_stop_without_grace_kills_at_once(client: Client, image: str) -> None:
    container = ready(
        Pod.run(client, image), "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    )
    client.stop(container, timeout_s=0)
    assert client.status(container).status.exit_code == 137


def test_second_stop_with_a_shorter_grace_shortens_the_first(client: Client, image: str) -> None:
    container = ready(
        Pod.run(client, image), "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    )
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(client.stop, container, timeout_s=50)
        time.sleep(0.3)
        client.stop(container, timeout_s=1)
        patient.result(timeout=5)
    assert time.monotonic() - started < 6
    assert client.status(container).status.exit_code == 137


def test_stopping_ends_everything_that_the_container_started(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    seconds = unique_seconds()
    pod.asks(container, f"busybox setsid sleep {seconds} </dev/null >/dev/null 2>&1 &")
    wait_until(lambda: processes_running(seconds))
    client.stop(container)
    wait_until(lambda: not processes_running(seconds), timeout_s=3)


def test_created_container_can_be_stopped_and_removed(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.create(pod.container("sleep", "3600"))
    client.stop(container, timeout_s=1)
    assert client.status(container).status.state == api.CONTAINER_EXITED
    client.remove(container)
    assert client.containers() == []


def test_running_container_is_removed_by_force(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    seconds = unique_seconds()
    container = pod.start(pod.container("sh", "-c", f"trap '' TERM; sleep {seconds}; :"))
    wait_until(lambda: processes_running(seconds))
    client.remove(container)
    assert processes_running(seconds) == []
    assert client.containers() == []


def test_stop_and_remove_succeed_again_and_for_what_never_was(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    for _ in range(2):
        client.stop(container)
    for _ in range(2):
        client.remove(container)
    client.stop(container)
    client.stop(UNKNOWN_ID)
    client.remove(UNKNOWN_ID)
    with refused(grpc.StatusCode.NOT_FOUND, container):
        client.status(container)


def test_log_outlives_its_container(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    status = pod.ends(pod.container("echo", "last words"))
    client.remove(status.id)
    client.remove_pod(pod.id)
    assert written(Path(status.log_path)) == b"last words\n"


@pytest.mark.parametrize("call", ["status", "start", "exec"])
def test_unknown_container_is_not_found(client: Client, call: str) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, UNKNOWN_ID):
        if call == "exec":
            client.exec(UNKNOWN_ID, "true")
        else:
            getattr(client, call)(UNKNOWN_ID)
