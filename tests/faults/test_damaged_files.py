"""Records and status files that are torn, missing, foreign or newer: each is set aside alone, and its pod taken away.

What is set aside stays for a person to look at; what the ID alone names (processes, network, mounts, cgroup) goes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults.looking import (
    Pids,
    container_pids,
    container_state,
    is_alive,
    pause_pid,
    pod_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

    Damage = Callable[[Path], None]


def torn(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def missing(file: Path) -> None:
    file.unlink()


def garbage(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 16)


def other_types(file: Path) -> None:
    document = json.loads(file.read_bytes())
    file.write_text(json.dumps({key: [value] for key, value in document.items()}))


def newer(file: Path) -> None:
    document = json.loads(file.read_bytes())
    file.write_text(json.dumps({**document, "format": document["format"] + 1}))


def foreign(file: Path) -> None:
    document = json.loads(file.read_bytes())
    # A status has no ID; one of nonsense times stands for that of somebody else.
    change = {"id": "f" * 64} if "id" in document else {"format": "one"}
    file.write_text(json.dumps({**document, **change}))


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_link(file: Path) -> None:
    elsewhere = file.with_name("elsewhere")
    file.rename(elsewhere)
    file.symlink_to("/dev/zero")


DAMAGES = [torn, empty, missing, garbage, other_types, newer, foreign, a_directory, a_link]
"""All are tried on records; statuses, which are read by the same code, meet every other one."""


class Pod:
    """One pod with a container that runs."""

    def __init__(self, client: Client, image: str) -> None:
        self.config = client.pod_config()
        self.id = client.run_pod(self.config)
        self.container = self.add(client, image)
        self.pids = [
            pause_pid(client, self.id),
            *pids_of(container_pids(client, self.container)),
        ]

    def add(self, client: Client, image: str) -> str:
        wanted = client.container_config(image, ["sleep", "600"])
        return client.run(self.id, wanted, self.config)


def pids_of(pids: Pids) -> list[int]:
    return [pids.process, pids.monitor]


@pytest.mark.parametrize(
    ("name", "damages"), [("record.json", DAMAGES), ("status.json", DAMAGES[::2])]
)
def test_damaged_sandboxes_are_set_aside_one_by_one(
    crash_daemon: Daemon, image: str, name: str, damages: list[Damage]
) -> None:
    client = crash_daemon.client
    healthy = Pod(client, image)
    pods = {damage: Pod(client, image) for damage in damages}
    crash_daemon.kill9()
    for damage, pod in pods.items():
        damage(crash_daemon.root / "sandboxes" / pod.id / name)
    crash_daemon.start()
    assert [item.id for item in client.pods()] == [healthy.id]
    assert [item.id for item in client.containers()] == [healthy.container]
    assert client.exec(healthy.container, "true").exit_code == 0
    for damage, pod in pods.items():
        assert not any(is_alive(pid) for pid in pod.pids), damage.__name__
    assert_set_aside(crash_daemon, name, {damage: pod.id for damage, pod in pods.items()})


@pytest.mark.parametrize(
    ("name", "damages"), [("record.json", DAMAGES), ("status.json", DAMAGES[::2])]
)
def test_damaged_containers_are_set_aside_one_by_one(
    crash_daemon: Daemon, image: str, name: str, damages: list[Damage]
) -> None:
    client = crash_daemon.client
    pod = Pod(client, image)
    containers = {damage: pod.add(client, image) for damage in damages}
    pids = {damage: container_pids(client, c) for damage, c in containers.items()}
    crash_daemon.kill9()
    for damage, container in containers.items():
        damage(crash_daemon.root / "containers" / container / name)
    crash_daemon.start()
    assert pod_state(client, pod.id) == "SANDBOX_READY"
    assert [item.id for item in client.containers()] == [pod.container]
    assert client.exec(pod.container, "true").exit_code == 0
    for damage, theirs in pids.items():
        assert not any(map(is_alive, pids_of(theirs))), damage.__name__
    assert_set_aside(crash_daemon, name, containers)


def assert_set_aside(daemon: Daemon, name: str, ids: Mapping[Damage, str]) -> None:
    """Each is kept below `damaged` and told of in the log, but for one without a record, which counts as removed."""
    kept = {ident for damage, ident in ids.items() if (damage, name) != (missing, "record.json")}
    directory = daemon.root / "damaged"
    assert {path.name.partition("-")[0] for path in directory.iterdir()} == kept
    told = [line for line in daemon.log().splitlines() if "damaged object set aside" in line]
    for ident in ids.values():
        assert any(ident in line for line in told)
    shutil.rmtree(directory)


def test_files_that_are_nobody_s_are_left_alone(crash_daemon: Daemon, image: str) -> None:
    client = crash_daemon.client
    pod = Pod(client, image)
    crash_daemon.kill9()
    strangers = [
        crash_daemon.root / "sandboxes" / "notes.txt",
        crash_daemon.root / "containers" / "lost+found",
        crash_daemon.state / "exits" / "nobody",
    ]
    strangers[0].write_text("mine")
    strangers[1].mkdir()
    strangers[2].write_text("0")
    # What a killed daemon's unfinished writes look like.
    unfinished = crash_daemon.root / "sandboxes" / pod.id / "status.json.1-1.tmp"
    unfinished.write_text("{")
    crash_daemon.start()
    assert client.exec(pod.container, "true").exit_code == 0
    assert all(path.exists() for path in strangers)
    client.remove_all_pods()
    assert not unfinished.exists()
    strangers[0].unlink()
    strangers[1].rmdir()
    strangers[2].unlink()


def test_exit_file_that_is_garbage_does_not_stop_the_start(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    pod = Pod(client, image)
    crash_daemon.kill9()
    (crash_daemon.state / "exits" / pod.container).write_bytes(b"\xffnot a number")
    (crash_daemon.state / "exits" / pod.id).mkdir()
    crash_daemon.start()
    assert container_state(client, pod.container) == "CONTAINER_RUNNING"
    assert pod_state(client, pod.id) == "SANDBOX_READY"
    (crash_daemon.state / "exits" / pod.id).rmdir()


def test_object_without_its_volatile_directory_can_be_stopped_and_removed(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    pod = Pod(client, image)
    crash_daemon.kill9()
    for directory in ("sandboxes", "containers", "runtime"):
        # Mounts and processes stay, as after an operator's cleaning of /run.
        shutil.rmtree(crash_daemon.state / directory, ignore_errors=True)
    crash_daemon.start()
    assert [item.id for item in client.pods()] == [pod.id]
    client.stop_pod(pod.id)
    client.remove_pod(pod.id)
    assert not any(is_alive(pid) for pid in pod.pids)


def test_created_container_whose_runtime_state_is_damaged_is_still_watched(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.create(pod, client.container_config(image, ["true"]), config)
    pids = container_pids(client, container)
    crash_daemon.kill9()
    (crash_daemon.state / "runtime" / "runc" / container / "state.json").write_text("{")
    crash_daemon.start()
    assert container_state(client, container) == "CONTAINER_CREATED"
    os.kill(pids.process, signal.SIGKILL)
    assert client.wait_exited(container).exit_code == 137
    client.remove(container)
    assert client.containers() == []
