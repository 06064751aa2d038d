"""A pod's life on real parts: what its pause container holds, what containers see of it, how it is found and goes."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import (
    Pod,
    cgroups_of,
    free_port,
    namespace,
    processes_running,
    refused,
    unique_seconds,
    wait_until,
)

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

UNKNOWN_ID = "0" * 64


def pod_info(client: Client, pod: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.pod_status(pod, verbose=True).info["info"])
    return found


def get(url: str) -> str:
    """The body, over a connection of our own: no proxy of the environment."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return str(answer.read().decode())


def serving(pod: Pod, directory: Path, content: str) -> str:
    """A container that serves `content` on port 80."""
    (directory / "index.html").write_text(content)
    directory.chmod(0o755)
    config = pod.container("httpd", "-f", "-p", "80", "-h", "/www")
    config.mounts.add(container_path="/www", host_path=str(directory), readonly=True)
    return pod.start(config)


# --- what a sandbox is -------------------------------------------------------------------------------------------


def test_ready_pod_is_a_pause_process_in_its_own_cgroup_and_namespaces(
    client: Client, image: str, daemon: Daemon
) -> None:
    before = time.time_ns()
    pod = Pod.run(client, image)
    status = client.pod_status(pod.id).status
    assert status.state == api.SANDBOX_READY
    assert before <= status.created_at <= time.time_ns()
    assert status.metadata == pod.config.metadata
    assert status.runtime_handler == "runc"
    pid = pod_info(client, pod.id)["pid"]
    # Started means told to go on: a moment later it is the pause program.
    command_line = Path(f"/proc/{pid}/cmdline")
    wait_until(lambda: command_line.read_bytes().startswith(b"/catatonit\0"))
    for kind in ("mnt", "net", "uts", "ipc", "pid"):
        assert namespace(kind, pid) != namespace(kind), kind
    root = next(
        line.split()
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        if line.split()[4] == "/"
    )
    assert "ro" in root[5].split(",")
    cgroups = cgroups_of(pod.id)
    assert cgroups
    assert all(cgroup.parent.name == daemon.cgroup_parent.strip("/") for cgroup in cgroups)
    assert any(str(pid) in (path / "cgroup.procs").read_text().split() for path in cgroups)


def test_network_namespace_is_visible_to_ip_netns_with_the_pods_address(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    assert pod.netns.exists()
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert pod.netns.name in names.stdout
    shown = json.loads(
        subprocess.run(
            ["ip", "-n", pod.netns.name, "-j", "addr"], capture_output=True, check=True
        ).stdout
    )
    links = {link["ifname"]: link for link in shown}
    assert "UP" in links["lo"]["flags"]
    assert pod.ip in [address["local"] for address in links["eth0"]["addr_info"]]


def test_address_comes_from_the_network_and_containers_have_it(
    client: Client, image: str, daemon: Daemon
) -> None:
    pod = Pod.run(client, image)
    network = ipaddress.ip_network(daemon.subnet)
    assert ipaddress.ip_address(pod.ip) in network
    assert f"inet {pod.ip}/{network.prefixlen}" in pod.says("ip -4 addr show dev eth0")


def test_pods_reach_each_other_and_the_node_reaches_them(
    client: Client, image: str, tmp_path: Path
) -> None:
    one, other = Pod.run(client, image), Pod.run(client, image)
    assert one.ip != other.ip
    serving(one, tmp_path, "hello")
    wait_until(lambda: accepts(one.ip, 80))
    assert get(f"http://{one.ip}/") == "hello"
    assert other.says(f"wget -q -O - http://{one.ip}/") == "hello\n"


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_host_port_leads_to_the_pod_until_it_is_stopped(
    client: Client, image: str, tmp_path: Path
) -> None:
    port = free_port()
    pod = Pod.run(client, image, client.pod_config(host_ports={port: 80}))
    serving(pod, tmp_path, "behind the port")
    wait_until(lambda: accepts(pod.ip, 80))
    assert get(f"http://127.0.0.1:{port}/") == "behind the port"
    client.stop_pod(pod.id)
    with pytest.raises(urllib.error.URLError):
        get(f"http://127.0.0.1:{port}/")


def test_port_mapping_without_a_host_port_publishes_nothing(client: Client, image: str) -> None:
    config = client.pod_config()
    config.port_mappings.add(protocol=api.TCP, container_port=80)
    pod = Pod.run(client, image, config)
    assert ipaddress.ip_address(pod.ip)


# --- what containers see -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a-name.of-its-own", "a_b", "-ü.", "h" * 64])
def test_hostname_is_the_pods(client: Client, image: str, name: str) -> None:
    config = client.pod_config()
    config.hostname = name
    pod = Pod.run(client, image, config)
    said = pod.says("hostname; cat /etc/hostname; echo $HOSTNAME; grep -c localhost /etc/hosts")
    assert said.splitlines()[:3] == [name] * 3


def test_resolv_conf_is_made_from_the_dns_config(client: Client, image: str) -> None:
    config = client.pod_config()
    config.dns_config.servers.extend(["10.96.0.10", "fd00::10"])
    config.dns_config.searches.extend(["default.svc.cluster.local", "svc.cluster.local"])
    config.dns_config.options.extend(["ndots:5", "edns0"])
    pod = Pod.run(client, image, config)
    assert pod.says("cat /etc/resolv.conf").splitlines() == [
        "search default.svc.cluster.local svc.cluster.local",
        "nameserver 10.96.0.10",
        "nameserver fd00::10",
        "options ndots:5 edns0",
    ]


def test_resolv_conf_is_the_nodes_without_a_dns_config(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    assert pod.says("cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text()


def test_generated_files_are_shared_by_the_pods_containers(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    pod.says("echo 10.0.0.7 another >>/etc/hosts")
    assert "10.0.0.7 another" in pod.says("cat /etc/hosts")
    assert "another" not in Path("/etc/hosts").read_text()


def test_shm_is_64_mebibytes_for_everyone_in_the_pod_and_nobody_else(
    client: Client, image: str
) -> None:
    pod, stranger = Pod.run(client, image), Pod.run(client, image)
    said = pod.says("stat -c %a /dev/shm; df -k /dev/shm | tail -1; echo shared >/dev/shm/note")
    mode, usage = said.splitlines()
    assert mode == "1777"
    assert usage.split()[1] == "65536"
    assert pod.says("cat /dev/shm/note") == "shared\n"
    assert stranger.says("ls /dev/shm") == ""


@pytest.mark.parametrize("name", ["resolv.conf", "hosts", "hostname"])
def test_a_file_of_the_pod_can_be_changed_and_not_grown_beyond_its_memory(
    client: Client, image: str, daemon: Daemon, name: str
) -> None:
    pod = Pod.run(client, image)
    on_disk = disk_use(daemon.root / "sandboxes" / pod.id)
    said = pod.says(
        f"echo '# mine' >> /etc/{name} && tail -n 1 /etc/{name};"
        f"dd if=/dev/zero bs=1M count=80 of=/etc/{name} 2>&1 | grep -o 'No space left on device';"
        f"stat -c %s /etc/{name}; : > /etc/{name} && echo small > /etc/{name} && cat /etc/{name}"
    )
    mine, refusal, size, small = said.splitlines()
    assert (mine, refusal, small) == ("# mine", "No space left on device", "small")
    assert 60 << 20 < int(size) <= 64 << 20
    assert disk_use(daemon.root / "sandboxes" / pod.id) - on_disk < 1 << 20
    # The pod's other containers see it, no other pod does.
    assert pod.says(f"cat /etc/{name}") == "small\n"


def test_what_grows_a_file_of_the_pod_is_memory_of_the_container_that_writes_it(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()

    def memory_use() -> int:
        request = api.ContainerStatsRequest(container_id=container)
        used: int = client.runtime.ContainerStats(request).stats.memory.usage_bytes.value
        return used

    before = memory_use()
    pod.asks(container, "dd if=/dev/zero bs=1M count=8 of=/etc/resolv.conf 2>&1")
    assert memory_use() - before > 7 << 20


def disk_use(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def test_network_sysctls_are_set_inside_only(client: Client, image: str) -> None:
    name = "net/ipv4/ip_unprivileged_port_start"
    outside = Path("/proc/sys", name).read_text()
    config = client.pod_config()
    config.linux.sysctls["net.ipv4.ip_unprivileged_port_start"] = "77"
    config.linux.sysctls["net/core/somaxconn"] = "99"
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    pod = Pod.run(client, image, config)
    said = pod.says(f"cd /proc/sys; cat {name} net/core/somaxconn kernel/shm_rmid_forced")
    assert said.split() == ["77", "99", "1"]
    assert Path("/proc/sys", name).read_text() == outside != "77\n"


def test_sysctls_of_interfaces_are_set_once_plugins_have_made_them(
    client: Client, image: str
) -> None:
    config = client.pod_config()
    config.linux.sysctls["net.ipv4.conf.all.forwarding"] = "0"
    config.linux.sysctls["net.ipv4.conf.eth0.forwarding"] = "1"
    config.linux.sysctls["net/ipv6/conf/eth0/accept_ra"] = "0"
    config.linux.sysctls["net.ipv4.conf.default.log_martians"] = "1"
    pod = Pod.run(client, image, config)
    said = pod.says(
        "cd /proc/sys/net; cat ipv4/conf/all/forwarding ipv4/conf/eth0/forwarding"
        " ipv6/conf/eth0/accept_ra ipv4/conf/eth0/log_martians"
    )
    assert said.split() == ["0", "1", "0", "1"]


def test_pod_on_the_nodes_network_has_no_namespace_of_its_own(client: Client, image: str) -> None:
    pod = Pod.run(client, image, client.pod_config(host_network=True))
    status = client.pod_status(pod.id).status
    assert status.network.ip == ""
    assert status.linux.namespaces.options.network == api.NODE
    assert not pod.netns.exists()
    config = pod.container()
    config.linux.security_context.namespace_options.network = api.NODE
    said = pod.says("readlink /proc/self/ns/net; hostname", config)
    assert said.splitlines() == [namespace("net"), socket.gethostname()]


# --- namespaces --------------------------------------------------------------------------------------------------


def with_pids(pod: Pod, mode: api.NamespaceMode.ValueType, target: str = "") -> api.ContainerConfig:
    config = pod.container()
    options = config.linux.security_context.namespace_options
    options.pid, options.target_id = mode, target
    return config


def test_shared_pid_namespace_shows_pause_and_the_other_containers(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    pod.sleeper(with_pids(pod, api.POD))
    said = pod.says("tr '\\0' ' ' </proc/1/cmdline; echo; ps -o args", with_pids(pod, api.POD))
    assert said.splitlines()[0].startswith("/catatonit -P")
    assert "sleep 3600" in said


def test_own_pid_namespace_shows_nobody_else(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    pod.sleeper(with_pids(pod, api.CONTAINER))
    said = pod.says("echo $$; ps -o args", with_pids(pod, api.CONTAINER))
    assert said.splitlines()[0] == "1"
    assert "sleep" not in said
    assert "catatonit" not in said


def test_node_pid_namespace_shows_the_nodes_processes(client: Client, image: str) -> None:
    config = client.pod_config()
    config.linux.security_context.namespace_options.pid = api.NODE
    pod = Pod.run(client, image, config)
    said = pod.says("readlink /proc/self/ns/pid; ls -d /proc/[0-9]*", with_pids(pod, api.NODE))
    assert said.splitlines()[0] == namespace("pid")
    assert f"/proc/{os.getpid()}" in said.splitlines()


def test_target_pid_namespace_is_that_of_the_container_named(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    target = pod.sleeper(with_pids(pod, api.CONTAINER))
    said = pod.says("tr '\\0' ' ' </proc/1/cmdline", with_pids(pod, api.TARGET, target))
    assert said == "sleep 3600 \n"


def test_containers_share_the_pods_network_ipc_and_host_name_but_not_its_mounts(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    look = "for kind in net ipc uts mnt; do readlink /proc/self/ns/$kind; done"
    # Both live at once: the number of a namespace that is gone may be given again.
    containers = [pod.sleeper(), pod.sleeper()]
    first, second = (pod.asks(container, look).split() for container in containers)
    assert first[:3] == second[:3]
    assert first[3] != second[3]
    pause = pod_info(client, pod.id)["pid"]
    assert first[:3] == [namespace(kind, pause) for kind in ("net", "ipc", "uts")]


def test_pod_in_the_nodes_ipc_namespace_has_the_nodes_shm(client: Client, image: str) -> None:
    config = client.pod_config()
    config.linux.security_context.namespace_options.ipc = api.NODE
    pod = Pod.run(client, image, config)
    container = pod.container()
    container.linux.security_context.namespace_options.ipc = api.NODE
    said = pod.says("readlink /proc/self/ns/ipc; stat -c %d:%i /dev/shm", container)
    node = Path("/dev/shm").stat()
    assert said.split() == [namespace("ipc"), f"{node.st_dev}:{node.st_ino}"]


# --- how it is found ---------------------------------------------------------------------------------------------


def listed(client: Client, filter_: api.PodSandboxFilter) -> list[str]:
    request = api.ListPodSandboxRequest(filter=filter_)
    return [pod.id for pod in client.runtime.ListPodSandbox(request, timeout=10).items]


def test_labels_and_annotations_come_back_as_given(client: Client, image: str) -> None:
    labels = {"app": "web", "empty": ""}
    annotations = {"note": "line one\nline two", "example.org/ünïcode": "✓"}
    pod = Pod.run(client, image, client.pod_config(labels=labels, annotations=annotations))
    status = client.pod_status(pod.id).status
    assert (dict(status.labels), dict(status.annotations)) == (labels, annotations)
    (entry,) = client.pods()
    assert (dict(entry.labels), dict(entry.annotations)) == (labels, annotations)


def test_filters_choose_by_label_state_and_beginning_of_the_id(client: Client, image: str) -> None:
    web = Pod.run(client, image, client.pod_config(labels={"app": "web", "tier": "front"}))
    db = Pod.run(client, image, client.pod_config(labels={"app": "db", "tier": "back"}))
    client.stop_pod(db.id)
    ready = api.PodSandboxStateValue(state=api.SANDBOX_READY)
    not_ready = api.PodSandboxStateValue(state=api.SANDBOX_NOTREADY)
    assert listed(client, api.PodSandboxFilter()) == [web.id, db.id]
    assert listed(client, api.PodSandboxFilter(label_selector={"app": "web"})) == [web.id]
    assert listed(client, api.PodSandboxFilter(label_selector={"app": "web", "tier": "back"})) == []
    assert listed(client, api.PodSandboxFilter(state=ready)) == [web.id]
    assert listed(client, api.PodSandboxFilter(state=not_ready)) == [db.id]
    assert listed(client, api.PodSandboxFilter(id=db.id[:13])) == [db.id]
    assert listed(client, api.PodSandboxFilter(id=UNKNOWN_ID)) == []


def test_beginning_of_an_id_is_enough(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    assert client.pod_status(pod.id[:12]).status.id == pod.id
    client.stop_pod(pod.id[:12])
    client.remove_pod(pod.id[:12])
    assert client.pods() == []


def test_verbose_status_tells_an_operator_where_to_look(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    info = pod_info(client, pod.id)
    assert info["sandboxID"] == pod.id
    assert info["netns"] == str(pod.netns)
    assert info["runtimeHandler"] == "runc"
    assert info["ips"] == [pod.ip]
    assert client.pod_status(pod.id).info == {}


def test_status_of_a_pod_has_its_containers(client: Client, image: str) -> None:
    pod, other = Pod.run(client, image), Pod.run(client, image)
    first = pod.container("true", name="app")
    ended = client.wait_exited(pod.start(first)).id
    first.metadata.attempt = 1
    again = pod.sleeper(first)
    other.sleeper()
    before_ns = time.time_ns()
    answer = client.pod_status(pod.id)
    assert [status.id for status in answer.containers_statuses] == [again, ended]
    assert before_ns <= answer.timestamp <= time.time_ns()


# --- retries -----------------------------------------------------------------------------------------------------


def test_same_request_again_gives_the_same_pod(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    assert client.run_pod(pod.config) == pod.id
    assert len(client.pods()) == 1


def test_same_request_at_once_makes_one_pod(client: Client) -> None:
    config = client.pod_config()
    with ThreadPoolExecutor(6) as pool:
        made = set(pool.map(client.run_pod, [config] * 6))
    assert {pod.id for pod in client.pods()} == made
    assert len(made) == 1


def test_request_that_its_client_gave_up_is_finished_for_the_retry(client: Client) -> None:
    config = client.pod_config()
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        client.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config), timeout=0.01)
    pod = client.run_pod(config)
    assert [each.id for each in client.pods()] == [pod]


def test_different_request_for_the_same_name_is_told_who_holds_it(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    changed = api.PodSandboxConfig()
    changed.CopyFrom(pod.config)
    changed.labels["changed"] = "yes"
    with refused(grpc.StatusCode.ALREADY_EXISTS, pod.id):
        client.run_pod(changed)
    client.stop_pod(pod.id)
    with refused(grpc.StatusCode.ALREADY_EXISTS, pod.id):
        client.run_pod(pod.config)
    pod.config.metadata.attempt += 1
    assert client.run_pod(pod.config) != pod.id


def test_name_is_free_once_the_pod_is_removed(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    client.remove_pod(pod.id)
    assert client.run_pod(pod.config) != pod.id


def test_pods_made_at_once_have_an_address_each(client: Client) -> None:
    configs = [client.pod_config() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        pods = list(pool.map(client.run_pod, configs))
    assert len({client.pod_status(pod).status.network.ip for pod in pods}) == 6
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(client.remove_pod, pods))
    assert client.pods() == []


# --- the end -----------------------------------------------------------------------------------------------------


def test_stopped_pod_keeps_its_record_and_nothing_else(
    client: Client, image: str, daemon: Daemon
) -> None:
    pod = Pod.run(client, image)
    container = pod.sleeper()
    address = pod.ip
    lease = daemon.lease_dir / daemon.name / address
    assert lease.exists()
    client.stop_pod(pod.id)
    status = client.pod_status(pod.id).status
    assert status.state == api.SANDBOX_NOTREADY
    assert status.network.ip == ""
    assert client.status(container).status.state == api.CONTAINER_EXITED
    assert not pod.netns.exists()
    assert not lease.exists()
    assert cgroups_of(pod.id) == cgroups_of(container) == []
    with refused(grpc.StatusCode.FAILED_PRECONDITION, pod.id, "not ready"):
        pod.create(pod.container("true"))


def test_stop_and_remove_succeed_again_and_for_what_never_was(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    for _ in range(2):
        client.stop_pod(pod.id)
    for _ in range(2):
        client.remove_pod(pod.id)
    client.stop_pod(pod.id)
    client.stop_pod(UNKNOWN_ID)
    client.remove_pod(UNKNOWN_ID)
    with refused(grpc.StatusCode.NOT_FOUND, pod.id):
        client.pod_status(pod.id)


def test_removing_a_running_pod_takes_its_containers_along(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    seconds = unique_seconds()
    config = pod.container("sh", "-c", f"trap '' TERM; sleep {seconds}")
    running, created = pod.start(config), pod.create(pod.container("true"))
    client.remove_pod(pod.id)
    assert client.pods() == []
    assert client.containers() == []
    assert processes_running(seconds) == []
    assert cgroups_of(running) == cgroups_of(created) == []


def test_stops_and_removals_at_once_all_succeed(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    containers = [pod.sleeper(), pod.sleeper(), pod.create(pod.container("true"))]
    calls = [
        *(partial(client.stop, container, timeout_s=5) for container in containers),
        *(partial(client.remove, container) for container in containers),
        *(partial(client.stop_pod, pod.id) for _ in range(3)),
        *(partial(client.remove_pod, pod.id) for _ in range(3)),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()
    assert (client.pods(), client.containers()) == ([], [])


@pytest.mark.parametrize("end", ["stop_pod", "remove_pod"])
def test_containers_that_are_being_made_while_their_pod_goes_are_undone(
    client: Client, image: str, end: str
) -> None:
    pod = Pod.run(client, image)
    configs = [pod.container("sleep", "3600") for _ in range(4)]

    with ThreadPoolExecutor(5) as pool:
        making = [pool.submit(pod.start, config) for config in configs]
        time.sleep(0.05)
        pool.submit(getattr(client, end), pod.id).result()
        # Each finds at some step that the pod, or the container itself, is gone: which one is a matter of luck.
        errors = [future.exception() for future in making]
    assert all(error is None or isinstance(error, grpc.RpcError) for error in errors)
    assert [c.state for c in client.containers() if c.state != api.CONTAINER_EXITED] == []
    assert all(not cgroups_of(container.id) for container in client.containers())
    client.remove_pod(pod.id)
    assert (client.pods(), client.containers()) == ([], [])


def test_pod_whose_pause_process_died_is_not_ready_and_says_why(client: Client, image: str) -> None:
    def is_not_ready() -> bool:
        return client.pod_status(pod.id).status.state == api.SANDBOX_NOTREADY

    pod = Pod.run(client, image)
    os.kill(pod_info(client, pod.id)["pid"], signal.SIGKILL)
    wait_until(is_not_ready, timeout_s=1)
    assert "pause container ended" in pod_info(client, pod.id)["reason"]
    client.stop_pod(pod.id)
    client.remove_pod(pod.id)
    assert client.pods() == []
