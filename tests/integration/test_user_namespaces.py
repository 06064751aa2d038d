"""Pods with user namespaces of their own: who their users are, what belongs to them, and what stays the node's.

The handler is runc, said to know ID-mapped mounts: see `idmap_runtime`. With CRI_SHIM_TEST_RUNTIME=PATH it is that
runtime, and ID-mapped volumes, which only runc 1.2 and newer make, are looked at as well.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.fakes import idmap_runtime
from tests.harness import leaks
from tests.integration.scene import Pod, cgroups_of, container_info, namespace, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

pytestmark = pytest.mark.integration

REAL_RUNTIME = os.environ.get("CRI_SHIM_TEST_RUNTIME", "")
HANDLER = "mapped"
FIRST, LENGTH = 200_000, 65_536


@pytest.fixture(scope="module")
def mapped(
    daemons: Daemons, archives: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon that offers user namespaces with one of its handlers."""
    runtime = REAL_RUNTIME or str(idmap_runtime.install(tmp_path_factory.mktemp("runtime")))
    handlers = {"runc": {"path": "runc"}, HANDLER: {"path": runtime}}
    try:
        with daemons.without_leaks(
            settings={"runtime": {"handlers": handlers}}, archives=archives
        ) as daemon:
            yield daemon
    except leaks.LeakError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def client(mapped: Daemon) -> Iterator[Client]:
    """That daemon, called; what a test leaves of its pods is removed."""
    yield mapped.client
    mapped.client.remove_all_pods()


def with_users(config: api.PodSandboxConfig) -> api.PodSandboxConfig:
    """The pod, with a user namespace as kubelet asks for it."""
    users = config.linux.security_context.namespace_options.userns_options
    users.mode = api.POD
    for mappings in (users.uids, users.gids):
        mappings.add(host_id=FIRST, container_id=0, length=LENGTH)
    return config


def like(pod: Pod, config: api.ContainerConfig) -> api.ContainerConfig:
    """The container, with the namespaces of its pod, as kubelet asks for it, and some power over its network."""
    config.linux.security_context.capabilities.add_capabilities.append("NET_ADMIN")
    config.linux.security_context.namespace_options.CopyFrom(
        pod.config.linux.security_context.namespace_options
    )
    return config


def test_pods_users_are_nobody_on_the_node_and_everything_works(
    mapped: Daemon, client: Client, image: str
) -> None:
    features = {
        h.name: h.features.user_namespaces
        for h in client.runtime.Status(api.StatusRequest()).runtime_handlers
    }
    assert features[HANDLER]
    config = with_users(client.pod_config())
    config.linux.sysctls.update(
        {
            "net.ipv4.ip_unprivileged_port_start": "7",
            "net.ipv4.conf.eth0.log_martians": "1",
            "kernel.shm_rmid_forced": "1",
        }
    )
    pod = Pod.run(client, image, config, handler=HANDLER)
    info = json.loads(client.pod_status(pod.id, verbose=True).info["info"])

    # What the pause container holds belongs to the pod's root.
    pause = info["pid"]
    assert Path(f"/proc/{pause}").stat().st_uid == FIRST
    assert namespace("user", pause) != namespace("user")
    cgroup = Path(f"/proc/{pause}/cgroup").read_text()
    assert f"{mapped.cgroup_parent}/{pod.id}" in cgroup
    assert cgroups_of(pod.id)

    # What its containers see.
    container = pod.sleeper(like(pod, pod.container()))
    assert pod.asks(container, "cat /proc/self/uid_map").split() == ["0", str(FIRST), str(LENGTH)]
    assert pod.asks(container, "id -u; stat -c %u:%g / /bin/sh").split() == ["0", "0:0", "0:0"]
    pod.asks(container, "echo mine > /tmp-file && echo 1.2.3.4 x >> /etc/hosts && touch /dev/shm/x")
    pod.asks(container, "chown 7:8 /tmp-file && ip addr add 10.99.0.1/32 dev lo")
    assert pod.asks(container, "echo out > /dev/stdout") == "out\n"
    assert pod.asks(container, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "7\n"
    assert pod.asks(container, "cat /proc/sys/net/ipv4/conf/eth0/log_martians") == "1\n"
    assert pod.asks(container, "cat /proc/sys/kernel/shm_rmid_forced") == "1\n"
    assert pod.ip in pod.asks(container, "ip -4 addr show dev eth0")
    assert pod.says("echo log > /dev/stderr; echo log", like(pod, pod.container())) == "log\n"

    terminal = like(pod, pod.container())
    terminal.tty = True
    terminal.command.append("tty")
    assert pod.ends(terminal).exit_code == 0

    # Its root is nobody on the node, and can't do what the node's can.
    found = container_info(client, container)
    pid = found["pid"]
    assert Path(f"/proc/{pid}").stat().st_uid == FIRST
    upper = Path(found["snapshot"]["upper"])
    written = (upper / "tmp-file").stat()
    assert (written.st_uid, written.st_gid) == (FIRST + 7, FIRST + 8)
    assert client.exec(container, "sh", "-c", "echo 1 > /proc/sys/kernel/panic").exit_code != 0

    # Another container of the pod is in the same namespace, also after a new start of the daemon.
    mapped.restart()
    second = pod.sleeper(pod.container())
    other = container_info(client, second)["pid"]
    assert namespace("user", other) == namespace("user", pid)
    unmapped = like(pod, pod.container())
    unmapped.linux.security_context.run_as_user.value = LENGTH
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "not mapped"):
        pod.create(unmapped)


def test_privileged_container_is_powerful_in_its_own_pod_only(client: Client, image: str) -> None:
    config = with_users(client.pod_config())
    config.linux.security_context.privileged = True
    pod = Pod.run(client, image, config, handler=HANDLER)
    privileged = like(pod, pod.container())
    privileged.linux.security_context.privileged = True
    script = "mkdir /m && mount -t tmpfs x /m && ! echo 1 > /proc/sys/kernel/panic && id -u"
    assert pod.says(script, privileged) == "0\n"


def test_volumes_belong_to_the_pods_users(client: Client, image: str, tmp_path: Path) -> None:
    pod = Pod.run(client, image, with_users(client.pod_config()), handler=HANDLER)
    (tmp_path / "theirs").touch()
    os.chown(tmp_path / "theirs", 7, 7)
    config = like(pod, pod.container())
    mount = config.mounts.add(container_path="/data", host_path=str(tmp_path))
    mount.uidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "gidMappings"):
        pod.create(config)
    mount.gidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
    if REAL_RUNTIME:
        assert pod.says("stat -c %u:%g /data/theirs; touch /data/new", config) == "7:7\n"
        assert (tmp_path / "new").stat().st_uid == 0


def test_pod_on_the_nodes_network_can_have_users_of_its_own(client: Client, image: str) -> None:
    config = with_users(client.pod_config(host_network=True))
    pod = Pod.run(client, image, config, handler=HANDLER)
    container = pod.sleeper(like(pod, pod.container()))
    pid = container_info(client, container)["pid"]
    assert namespace("net", pid) == namespace("net")
    assert pod.asks(container, "cat /proc/self/uid_map").split() == ["0", str(FIRST), str(LENGTH)]
    assert "lo" in pod.asks(container, "ls /sys/class/net").split()
    assert client.exec(container, "ip", "link", "set", "lo", "mtu", "1500").exit_code != 0
    assert client.exec(container, "sh", "-c", "echo 1 > /sys/kernel/mm/ksm/run").exit_code != 0


def test_ten_such_pods_are_made_and_removed_at_once(client: Client) -> None:
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            pod = client.run_pod(with_users(client.pod_config()), handler=HANDLER)
            client.remove_pod(pod)
        except grpc.RpcError as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not client.pods()


def test_handler_that_can_not_map_ids_refuses(client: Client) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "userns_options", "'runc'", "runc 1.2"):
        client.run_pod(with_users(client.pod_config()), handler="runc")
    config = with_users(client.pod_config())
    config.linux.security_context.namespace_options.pid = api.NODE
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "namespace_options.pid"):
        client.run_pod(config, handler=HANDLER)
    assert not client.pods()
