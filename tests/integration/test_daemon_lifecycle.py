"""The daemon itself: how it starts, says that it is ready, is watched, reloads, and goes without its containers."""

from __future__ import annotations

import ctypes
import grp
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host.cgroups.layout import detect_layout
from cri_shim.oci.refusals import crun_problem
from tests.fakes.cni_plugin import install_plugin
from tests.harness.daemon import DaemonError, environment
from tests.integration.scene import (
    Pod,
    container_info,
    free_port,
    processes_running,
    refused,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

pytestmark = pytest.mark.integration

CRI_SERVICES = [
    f"runtime.{version}.{service}"
    for version in ("v1", "v1alpha2")
    for service in ("RuntimeService", "ImageService")
]


def http_get(daemon: Daemon, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.metrics_port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def metric(daemon: Daemon, name: str) -> float:
    """The value of one series, by its name with labels as the page writes them."""
    _, page = http_get(daemon, "/metrics")
    for line in page.splitlines():
        series, _, value = line.rpartition(" ")
        if series == name:
            return float(value)
    raise AssertionError(f"no {name} in {page}")


def events(daemon: Daemon) -> list[dict[str, Any]]:
    """What it logged, over all its lives."""
    lines = daemon.log().splitlines(keepends=True)
    # What is being written just now has no end yet.
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]


# --- looking at it -----------------------------------------------------------------------------------------------


def test_version_is_cri_shims(client: Client) -> None:
    version = client.runtime.Version(api.VersionRequest(version="v1"), timeout=10)
    assert (version.runtime_name, version.runtime_api_version) == ("cri-shim", "v1")
    assert version.runtime_version


def test_status_is_ready_and_names_its_handlers(client: Client) -> None:
    answer = client.runtime.Status(api.StatusRequest(), timeout=10)
    conditions = {each.type: each.status for each in answer.status.conditions}
    assert conditions == {"RuntimeReady": True, "NetworkReady": True}
    announced = {handler.name for handler in answer.runtime_handlers}
    assert announced >= {"", "runc"}
    assert "kata" not in announced, "its kind is not served"
    crun_works = shutil.which("crun") and crun_problem(detect_layout(Path("/"))) is None
    assert ("crun" in announced) is bool(crun_works)
    assert answer.info == {}


def test_verbose_status_has_the_configuration_and_the_networks(
    client: Client, daemon: Daemon
) -> None:
    info = client.runtime.Status(api.StatusRequest(verbose=True), timeout=10).info
    assert json.loads(info["config"])["root"] == str(daemon.root)
    assert json.loads(info["cni"])["networks"] == [daemon.name]


def test_runtime_config_names_the_cgroup_driver(client: Client) -> None:
    answer = client.runtime.RuntimeConfig(api.RuntimeConfigRequest(), timeout=10)
    assert answer.linux.cgroup_driver == api.CGROUPFS


def test_runtime_config_of_the_kubelet_is_taken_note_of(client: Client) -> None:
    config = api.RuntimeConfig(network_config=api.NetworkConfig(pod_cidr="10.1.2.0/24"))
    request = api.UpdateRuntimeConfigRequest(runtime_config=config)
    client.runtime.UpdateRuntimeConfig(request, timeout=10)


def test_health_service_knows_every_service(client: Client) -> None:
    for service in ("", *CRI_SERVICES):
        answer = client.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    with refused(grpc.StatusCode.NOT_FOUND):
        client.health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=10)


def test_reflection_lists_the_services_and_their_methods(daemon: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) >= {*CRI_SERVICES, "grpc.health.v1.Health"}
        file = database.FindFileContainingSymbol("runtime.v1.RuntimeService")
        (service,) = [each for each in file.service if each.name == "RuntimeService"]
        assert "RunPodSandbox" in [method.name for method in service.method]


def test_metrics_count_what_happens(client: Client, daemon: Daemon, image: str) -> None:
    labels = 'method="RunPodSandbox",service="runtime.v1.RuntimeService"'
    pod = Pod.run(client, image)
    status = pod.ends(pod.container("sh", "-c", "exit 3"))
    pod.sleeper()
    assert status.exit_code == 3
    assert metric(daemon, 'cri_shim_sandboxes{state="ready"}') == 1
    assert metric(daemon, 'cri_shim_containers{state="running"}') == 1
    assert metric(daemon, 'cri_shim_containers{state="exited"}') == 1
    assert metric(daemon, "cri_shim_images") >= 2
    before = metric(daemon, f'cri_shim_grpc_requests_total{{code="OK",{labels}}}')
    errors = metric(daemon, 'cri_shim_container_exits_total{reason="Error"}')
    assert errors >= 1
    Pod.run(client, image)
    assert metric(daemon, f'cri_shim_grpc_requests_total{{code="OK",{labels}}}') == before + 1
    assert metric(daemon, f"cri_shim_grpc_request_seconds_count{{{labels}}}") >= before + 1
    assert metric(daemon, 'cri_shim_cni_operation_seconds_count{operation="ADD"}') >= 2
    assert (
        metric(daemon, 'cri_shim_oci_command_seconds_count{command="create",handler="runc"}') >= 2
    )
    assert metric(daemon, 'cri_shim_oci_command_seconds_count{command="run",handler="runc"}') >= 2
    assert metric(daemon, "process_open_fds") > 0


def test_http_answers_for_its_three_paths_and_nothing_else(daemon: Daemon) -> None:
    assert http_get(daemon, "/healthz") == (200, "ok\n")
    assert http_get(daemon, "/readyz?verbose=1") == (200, "ok\n")
    assert http_get(daemon, "/metrics", "HEAD") == (200, "")
    assert http_get(daemon, "/elsewhere")[0] == 404
    assert http_get(daemon, "/metrics", "POST")[0] == 405


def test_each_call_is_logged_once_with_what_it_was_about(client: Client, daemon: Daemon) -> None:
    def calls(about: str, rpc: str) -> list[dict[str, Any]]:
        lines = [event for event in events(daemon) if event["event"] == "call"]
        return [line for line in lines if line["rpc"] == rpc and about in line.values()]

    pod = client.run_pod(client.pod_config())
    unknown = secrets.token_hex(32)
    with refused(grpc.StatusCode.NOT_FOUND):
        client.status(unknown)
    # A refusal is on its way before its line is written.
    wait_until(lambda: calls(unknown, "ContainerStatus"))
    (made,), (failed,) = calls(pod, "RunPodSandbox"), calls(unknown, "ContainerStatus")
    assert (made["code"], failed["code"]) == ("OK", "NOT_FOUND")
    assert unknown in failed["error"]
    assert made["request_id"] != failed["request_id"]


# --- its files ---------------------------------------------------------------------------------------------------


def test_socket_and_directories_are_for_root_alone_by_default(daemon: Daemon) -> None:
    status = daemon.socket.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert (status.st_uid, status.st_gid) == (0, 0)
    assert not connects_as(daemon.socket, 4321, 4321)
    # The way to the socket is open to those who may connect; what lies beside it is not.
    assert stat.S_IMODE(daemon.state.stat().st_mode) == 0o711
    inner = [entry for entry in daemon.state.iterdir() if entry.is_dir()]
    assert inner
    for directory in (daemon.root, *inner):
        # The root of a user namespace must pass on its way to its root file system; nobody may look.
        passable = directory.name in ("sandboxes", "containers")
        mode = 0o711 if passable else 0o700
        assert stat.S_IMODE(directory.stat().st_mode) == mode, directory


def test_socket_is_open_to_the_group_it_is_configured_with(
    daemons: Daemons, archives: list[Path]
) -> None:
    group = grp.getgrnam("nogroup").gr_gid
    settings = {"socket": {"group": "nogroup", "mode": "0620"}}
    with daemons.without_leaks(settings=settings, archives=archives) as daemon:
        status = daemon.socket.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o620, group)
        assert connects_as(daemon.socket, 4321, group)
        assert not connects_as(daemon.socket, 4321, 4321)


def connects_as(path: Path, uid: int, gid: int) -> bool:
    """Whether somebody else than root could connect: asked by a thread with that file system identity."""

    def connect() -> bool:
        # Of this thread alone, unlike setuid(2) as libc does it; it takes CAP_DAC_OVERRIDE along.
        libc = ctypes.CDLL(None)
        libc.setfsgid(gid)
        libc.setfsuid(uid)
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(path))
            except PermissionError:
                return False
            return True

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(connect).result()


def test_host_ports_are_not_published_when_switched_off(
    daemons: Daemons, archives: list[Path]
) -> None:
    with daemons.without_leaks(settings={"sandbox": {"hostport": False}}) as daemon:
        [image, *_] = [each for a in archives for each in daemon.client.import_image(a)]
        port = free_port()
        config = daemon.client.pod_config(host_ports={port: 80})
        pod = Pod.run(daemon.client, image.names[0], config)
        pod.start(pod.container("httpd", "-f", "-p", "80"))
        wait_until(lambda: connects(pod.ip, 80))
        assert not connects("127.0.0.1", port)
        daemon.client.remove_all_pods()
        request = api.RemoveImageRequest(image=api.ImageSpec(image=image.id))
        daemon.client.images.RemoveImage(request, timeout=10)


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


# --- start -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(daemons: Daemons) -> Iterator[Daemon]:
    """A daemon that has not been started."""
    daemon = daemons.create()
    yield daemon
    daemons.destroy(daemon)


def run_refused(daemon: Daemon) -> str:
    """Start it in vain; what it said."""
    done = subprocess.run(
        daemon.command_line(),
        cwd=daemon.tree,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_second_daemon_is_refused_and_the_first_one_serves_on(daemon: Daemon) -> None:
    inode = daemon.socket.stat().st_ino
    said = run_refused(daemon)
    assert str(daemon.root) in said
    assert str(daemon.pid) in said or "another" in said
    assert "Traceback" not in said
    assert daemon.socket.stat().st_ino == inode
    assert daemon.client.is_serving()


def test_second_daemon_at_the_same_socket_is_refused(daemon: Daemon, fresh: Daemon) -> None:
    fresh.write_settings({"listen": [f"unix://{daemon.socket}"]})
    said = run_refused(fresh)
    assert str(daemon.socket) in said
    assert daemon.client.is_serving()


def test_metrics_address_in_use_is_told_by_its_key(daemon: Daemon, fresh: Daemon) -> None:
    fresh.write_settings({"metrics": {"address": f"127.0.0.1:{daemon.metrics_port}"}})
    said = run_refused(fresh)
    assert "metrics.address" in said
    assert str(daemon.metrics_port) in said
    assert not fresh.socket.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"no_such_key": 1}, ("config.yaml", "no_such_key")),
        ({"log": {"level": "loud"}}, ("config.yaml", "log.level", "loud", "debug")),
        ({"runtime": {"default_handler": "nope"}}, ("runtime.default_handler", "nope")),
        ({"socket": {"group": "no-such-group"}}, ("socket.group", "no-such-group")),
        ({"listen": []}, ("listen",)),
    ],
)
def test_configuration_that_cannot_be_stops_the_start_with_one_line(
    fresh: Daemon, settings: dict[str, object], words: tuple[str, ...]
) -> None:
    fresh.write_settings(settings)
    said = run_refused(fresh)
    assert [word for word in words if word not in said] == []
    assert "Traceback" not in said
    assert not fresh.socket.exists()


def test_socket_file_of_a_dead_daemon_is_replaced(fresh: Daemon) -> None:
    fresh.start()
    fresh.kill9()
    assert fresh.socket.exists()
    fresh.start()
    assert fresh.client.is_serving()


def test_service_manager_is_told_how_the_daemon_stands_from_its_start_to_its_stop(
    fresh: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "notify"

    def wait_told(*lines: str) -> None:
        """The next message but for the watchdog's and those of a start that takes its time."""
        while True:
            told = manager.recv(4096).decode().splitlines()
            if told[0] != "WATCHDOG=1" and not told[0].startswith("EXTEND_TIMEOUT_USEC="):
                assert [line.partition("=")[0] for line in told] == list(lines)
                return

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *fresh.command_line()],
            env={**environment(), "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_told("READY", "STATUS")
            assert fresh.client.is_serving()
            for _ in range(3):
                assert manager.recv(4096) == b"WATCHDOG=1"
            process.send_signal(signal.SIGHUP)
            wait_told("RELOADING", "MONOTONIC_USEC")
            wait_told("READY")
            # One that does not turn tells nothing: that is what the manager goes by.
            process.send_signal(signal.SIGSTOP)
            manager.settimeout(0.5)
            with pytest.raises(TimeoutError):
                list(iter(lambda: manager.recv(4096), b""))
            process.send_signal(signal.SIGCONT)
            manager.settimeout(20)
            assert manager.recv(4096) == b"WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            wait_told("STOPPING", "STATUS")
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def test_metrics_can_be_switched_off(fresh: Daemon) -> None:
    fresh.write_settings({"metrics": {"address": ""}})
    fresh.start()
    with pytest.raises(ConnectionRefusedError):
        http_get(fresh, "/healthz")


# --- reload ------------------------------------------------------------------------------------------------------


def reloaded(daemon: Daemon) -> dict[str, Any]:
    """Reload it, and what it says about that."""
    told = ("reloaded", "configuration not reloaded, the old one stays in effect")
    before = sum(event["event"] in told for event in events(daemon))

    def answers() -> list[dict[str, Any]]:
        return [event for event in events(daemon) if event["event"] in told][before:]

    daemon.reload()
    wait_until(answers)
    return answers()[0]


def test_reload_applies_what_can_be_and_names_what_has_to_wait(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    pod = Pod.run(client, image)
    container = pod.sleeper()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "extra"):
        client.run_pod(client.pod_config(), handler="extra")
    crash_daemon.write_settings(
        {
            "log": {"level": "warning"},
            "runtime": {"handlers": {"extra": {"path": "runc"}}},
            "socket": {"mode": "0600"},
        }
    )
    # The line itself is below the new level: the effect is waited for.
    crash_daemon.reload()
    wait_until(lambda: "extra" in handlers(client))
    other = Pod.run(client, image, handler="extra")
    assert client.pod_status(other.id).status.runtime_handler == "extra"
    assert client.status(container).status.state == api.CONTAINER_RUNNING
    assert stat.S_IMODE(crash_daemon.socket.stat().st_mode) == 0o660
    assert pod.id in crash_daemon.log()
    assert other.id not in crash_daemon.log()
    crash_daemon.write_settings({"log": {"level": "info"}})
    said = reloaded(crash_daemon)
    assert "log.level" in said["applied"]
    assert "socket.mode" in said["needs_restart"]


def handlers(client: Client) -> set[str]:
    answer = client.runtime.Status(api.StatusRequest(), timeout=10)
    return {handler.name for handler in answer.runtime_handlers}


def test_reload_of_a_bad_configuration_keeps_the_old_one(crash_daemon: Daemon, image: str) -> None:
    before = handlers(crash_daemon.client)
    crash_daemon.write_settings(
        {"runtime": {"handlers": {"extra": {"path": "runc"}}}, "no_such_key": 1}
    )
    said = reloaded(crash_daemon)
    assert said["level"] == "error"
    assert "no_such_key" in said["error"]
    assert handlers(crash_daemon.client) == before
    assert Pod.run(crash_daemon.client, image).ip
    crash_daemon.config_file.write_text(": [ not yaml")
    assert "config.yaml" in reloaded(crash_daemon)["error"]
    assert crash_daemon.client.is_serving()
    # What the fixture starts again must be startable.
    crash_daemon.write_settings({"no_such_key": None, "runtime": {}})
    text = crash_daemon.config_file.read_text()
    crash_daemon.config_file.write_text(text.replace("no_such_key: null\n", ""))


# --- stop --------------------------------------------------------------------------------------------------------


def test_stop_leaves_containers_running_and_the_next_start_finds_them(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    pod = Pod.run(client, image)
    stays, ends = pod.sleeper(), pod.start(pod.container("sh", "-c", "sleep 0.7; exit 9"))
    before = client.status(stays, verbose=True).info["info"]
    address = pod.ip
    assert crash_daemon.stop() == 0
    assert not crash_daemon.socket.exists()
    assert Path(f"/proc/{json.loads(before)['pid']}/cmdline").read_bytes() == b"sleep\x003600\0"
    wait_until(lambda: any((crash_daemon.state / "exits").iterdir()))
    crash_daemon.start()
    after = client.status(stays, verbose=True)
    assert after.status.state == api.CONTAINER_RUNNING
    assert json.loads(after.info["info"])["pid"] == json.loads(before)["pid"]
    assert client.exec(stays, "true").exit_code == 0
    assert pod.ip == address
    ended = client.status(ends).status
    assert (ended.state, ended.exit_code, ended.reason) == (api.CONTAINER_EXITED, 9, "Error")
    assert client.run_pod(pod.config) == pod.id


def test_stop_lets_the_call_under_way_end_and_turns_new_ones_away(
    crash_daemon: Daemon, tmp_path: Path, image: str
) -> None:
    client = crash_daemon.client
    plugins = tmp_path / "plugins"
    install_plugin(plugins, "slow")
    script = {"ADD": {"delay": 1.5}}
    crash_daemon.write_settings({"cni": {"plugin_dirs": [str(plugins)]}})
    crash_daemon.write_conflist(
        {
            "cniVersion": "1.0.0",
            "name": crash_daemon.name,
            "plugins": [{"type": "slow", "script": script}],
        }
    )
    crash_daemon.restart()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(Pod.run, client, image)
        wait_until(lambda: processes_running(str(plugins / "slow")))
        assert crash_daemon.pid is not None
        os.kill(crash_daemon.pid, signal.SIGTERM)
        wait_until(
            lambda: "stopping" in [event["event"].split(";")[0] for event in events(crash_daemon)]
        )
        with refused(grpc.StatusCode.UNAVAILABLE):
            client.run_pod(client.pod_config())
        pod = running.result(timeout=20)
    assert crash_daemon.wait_ended() == 0
    crash_daemon.start()
    assert [(each.id, each.state) for each in client.pods()] == [(pod.id, api.SANDBOX_READY)]


def test_signals_that_its_starter_ignores_reach_no_container(
    crash_daemon: Daemon, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignoring = ["env", "--ignore-signal", "--block-signal", *crash_daemon.command_line()]
    monkeypatch.setattr(crash_daemon, "command_line", lambda failpoint="": ignoring)
    crash_daemon.restart()
    client = crash_daemon.client
    pod = Pod.run(client, image)
    container = pod.start(pod.container("sleep", "3600"))
    status = Path(f"/proc/{container_info(client, container)['pid']}/status").read_text()
    execed = client.exec(container, "cat", "/proc/self/status").stdout.decode()
    for text in (status, execed):
        masks = re.findall(r"^Sig(?:Ign|Blk):\t(\w+)$", text, re.MULTILINE)
        assert [int(mask, 16) for mask in masks] == [0, 0]


def test_interrupt_stops_as_well(fresh: Daemon) -> None:
    fresh.start()
    assert fresh.pid is not None
    os.kill(fresh.pid, signal.SIGINT)
    assert fresh.wait_ended() == 0
    assert not fresh.socket.exists()


def test_calls_before_readiness_are_told_to_wait(fresh: Daemon) -> None:
    """Between the socket's appearance and READY only questions about the server itself are answered."""
    seen: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            if fresh.socket.exists():
                with grpc.insecure_channel(f"unix:{fresh.socket}") as channel:
                    health = health_pb2_grpc.HealthStub(channel)
                    try:
                        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                        seen.add(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
                    except grpc.RpcError:
                        continue

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        fresh.start()
        wait_until(lambda: "SERVING" in seen)
    finally:
        done.set()
        asking.join()
    assert seen <= {"NOT_SERVING", "SERVING"}


def test_daemon_that_is_told_a_wrong_file_says_so(daemons: Daemons) -> None:
    daemon = daemons.create()
    try:
        daemon.config_file.unlink()
        with pytest.raises(DaemonError, match=r"config\.yaml"):
            daemon.start()
    finally:
        daemons.destroy(daemon)
