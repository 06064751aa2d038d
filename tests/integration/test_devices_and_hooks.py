"""Devices by request and by CDI, and OCI hooks, with real runc: one daemon, whose directories are filled as it runs."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.scene import Pod, refused, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

GPU = "vendor.example/gpu"


class Node:
    """A daemon with directories for devices and hooks, and what its hooks wrote."""

    def __init__(self, daemons: Daemons, base: Path) -> None:
        self.cdi_dir = base / "cdi"
        self.hooks_dir = base / "hooks"
        self.calls = base / "calls"
        self.hook_list = base / "hook-list.json"
        self.device = base / "fake-gpu"
        self.library = base / "library"
        self.base = base
        # There from the start: the watches that the daemon would keep of new ones are no leak, but look like one.
        for directory in (self.library, self.cdi_dir, self.hooks_dir):
            directory.mkdir()
        (self.library / "version").write_text("535\n")
        # What the vendor's driver would bring: here it is /dev/kmsg under another name, which may be opened to write.
        os.mknod(self.device, 0o600 | stat.S_IFCHR, os.makedev(1, 11))
        self.hook_list.write_text(json.dumps({"poststart": [self.hook("started")]}))
        self.daemon: Daemon = daemons.create(
            settings={
                "security": {
                    "cdi_dirs": [str(self.cdi_dir)],
                    "hooks_dirs": [str(self.hooks_dir)],
                    "hook_spec": str(self.hook_list),
                }
            }
        )

    def hook(self, word: str) -> dict[str, Any]:
        """A program of root's that notes `word` and the container whose state it was given."""
        program = self.base / f"hook-{word}"
        program.write_text(
            f'#!/bin/sh\nid=$(tr , "\\n" | sed -n \'s/.*"id":"\\([0-9a-f]*\\)".*/\\1/p\')\n'
            f'echo "{word} $id $1" >>{self.calls}\n'
        )
        program.chmod(0o755)
        return {"path": str(program), "args": [program.name, "argument"], "timeout": 10}

    def calls_of(self, container: str) -> list[str]:
        """The words noted for this container."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [word for word, id_, _ in map(str.split, lines) if id_ == container]


@pytest.fixture(scope="module")
def node(
    daemons: Daemons, archives: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    node = Node(daemons, tmp_path_factory.mktemp("node"))
    try:
        node.daemon.start()
        node.daemon.warm_up(archives)
        yield node
    finally:
        daemons.destroy(node.daemon)


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    yield node.daemon.client
    node.daemon.client.remove_all_pods()


def test_cdi_device_brings_node_library_environment_and_hook(
    node: Node, client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.CDI_devices.add(name=f"{GPU}=0")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"{GPU}=0", "no such device"):
        pod.create(config)
    hook = node.hook("cdi")
    document = {
        "cdiVersion": "0.7.0",
        "kind": GPU,
        "devices": [
            {
                "name": "0",
                "containerEdits": {
                    "deviceNodes": [
                        {"path": "/dev/gpu0", "hostPath": str(node.device), "permissions": "w"}
                    ]
                },
            }
        ],
        "containerEdits": {
            "env": ["GPU_DRIVER=535"],
            "additionalGids": [44],
            "mounts": [
                {
                    "hostPath": str(node.library),
                    "containerPath": "/usr/lib/gpu",
                    "options": ["ro", "nosuid", "nodev", "bind"],
                }
            ],
            "hooks": [{"hookName": "createContainer", **hook}],
        },
    }
    # The driver is installed while the daemon runs.
    (node.cdi_dir / "gpu.json").write_text(json.dumps(document))
    script = (
        ": >/dev/gpu0 && echo open; (: </dev/gpu0) 2>&1 | grep -c permitted; stat -c %u /dev/gpu0; "
        "cat /usr/lib/gpu/version; (touch /usr/lib/gpu/x) 2>&1 | grep -c Read-only; echo $GPU_DRIVER; id -G"
    )
    config.linux.security_context.run_as_user.value = 0
    assert pod.says(script, config).split() == ["open", "1", "0", "535", "1", "535", "0", "44"]
    by_annotation = pod.container(name="by-annotation")
    by_annotation.annotations["cdi.k8s.io/plugin_gpu"] = f"{GPU}=0"
    by_annotation.linux.security_context.run_as_user.value = 1000
    said = pod.says(": >/dev/gpu0 && stat -c %u /dev/gpu0", by_annotation)
    assert said.split() == ["1000"], "it belongs to whom it is for"
    calls = [node.calls_of(container.id) for container in client.containers()]
    assert all("cdi" in words for words in calls)


def test_hooks_run_at_their_stages_for_whom_they_are(
    node: Node, client: Client, image: str
) -> None:
    for number, stage in enumerate(("prestart", "poststop")):
        document = {
            "version": "1.0.0",
            "hook": node.hook(stage),
            "when": {"annotations": {r"^example\.org/audit$": "^(yes|true)$"}},
            "stages": [stage],
        }
        (node.hooks_dir / f"{number}.json").write_text(json.dumps(document))
    pod = Pod.run(client, image)
    audited = pod.container("true")
    audited.annotations["example.org/audit"] = "yes"
    container = pod.ends(audited).id
    wait_until(lambda: node.calls_of(container) == ["prestart", "started", "poststop"])
    plain = pod.ends(pod.container("true", name="plain")).id
    assert node.calls_of(plain) == ["started"]
    # What others may write does not run as root: the container is refused, and nothing stays of it.
    (node.base / "hook-prestart").chmod(0o777)
    again = pod.container("true", name="again")
    again.annotations["example.org/audit"] = "yes"
    with refused(grpc.StatusCode.UNAVAILABLE, "hook-prestart", "writable by users other than root"):
        pod.create(again)


def test_requested_devices_are_there_with_their_permissions_and_no_others(
    node: Node, client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.devices.add(host_path=str(node.device), container_path="/dev/mine", permissions="w")
    config.devices.add(host_path="/dev/net", container_path="/dev/net", permissions="rw")
    directory = node.base / "cards"
    directory.mkdir()
    os.mknod(directory / "card0", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (directory / "link").symlink_to("/dev/kmsg")
    config.devices[1].host_path = str(directory)
    config.devices[1].container_path = "/dev/cards"
    script = (
        ": >/dev/mine && echo open; (: </dev/mine) 2>&1 | grep -c permitted; "
        "echo x >/dev/cards/card0 && ls /dev/cards; ls /dev/fuse /dev/kmsg 2>&1 | grep -c 'No such'"
    )
    assert pod.says(script, config).split() == ["open", "1", "card0", "2"]
    missing = pod.container("true", name="missing")
    missing.devices.add(host_path="/dev/no-such-device", permissions="rw")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "devices[0].host_path", "/dev/no-such-device"):
        pod.create(missing)


def test_device_that_can_not_be_made_where_it_shall_be_is_refused_by_its_field(
    client: Client, image: str, tmp_path: Path
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("true")
    config.mounts.add(container_path="/opt", host_path=str(tmp_path), readonly=True)
    config.devices.add(host_path="/dev/null", container_path="/opt/device")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "devices[0].container_path", "/opt/device"):
        pod.create(config)


@pytest.mark.parametrize("privileged", [False, True])
def test_device_is_where_it_was_asked_for_or_refused_by_its_field(
    client: Client, image: str, privileged: bool
) -> None:
    """A runtime passes over a device where there is something already."""
    pod_config = client.pod_config()
    pod_config.linux.security_context.privileged = privileged
    pod = Pod.run(client, image, pod_config)

    def wanted(place: str) -> api.ContainerConfig:
        config = pod.container()
        config.linux.security_context.privileged = privileged
        config.devices.add(host_path="/dev/zero", container_path=place)
        return config

    for place in ("/dev/mine", "/dev/a/b/c", "/dev/../opt/new", "/dev/console", "/opt//x"):
        assert (
            pod.says(f"stat -c '%F %t:%T' {place}", wanted(place)) == "character special file 1:5\n"
        )
    for place in (
        *("/dev/null/x", "/dev/shm/x", "/dev/pts/x", "/dev/mqueue/x", "/dev/pts"),
        *("/proc/x", "/sys/x", "/etc/passwd", "/etc/passwd/x", "/etc", "/dev/" + "n" * 300),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "devices", "container_path"):
            pod.create(wanted(place))


def test_device_that_may_only_be_read_does_not_take_the_containers_own_away(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.devices.add(host_path="/dev/null", permissions="r")
    assert pod.says("echo x > /dev/null; echo done", config) == "done\n"


def test_check_tells_what_is_wrong_with_the_nodes_files(node: Node) -> None:
    (node.hooks_dir / "bad.json").write_text("{")
    try:
        done = node.daemon.cli("check", "--json", check=False)
    finally:
        (node.hooks_dir / "bad.json").unlink()
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["oci hooks"]["level"] == "warning"
    assert "bad.json" in rows["oci hooks"]["detail"]
    assert rows["cdi"]["level"] == "ok"
