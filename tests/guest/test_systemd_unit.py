"""The unit of deploy/systemd under a real systemd: the daemon comes, goes, dies and reloads, and pods stay."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.guest import systemd
from tests.guest.systemd import CGROUP_DIR, show, systemctl
from tests.harness.client import Client
from tests.integration.scene import Pod, cgroups_of, container_info, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIT = "cri-shim.service"
CHECKOUT = Path(__file__).parents[2]
UNIT_FILE = Path("/etc/systemd/system") / UNIT
PROGRAM = Path("/usr/local/bin/cri-shim")
CONFIG_FILE = Path("/etc/cri-shim/config.yaml")
SOCKET = Path("/run/cri-shim/cri-shim.sock")
START_S = 120.0


@pytest.fixture
def installed() -> Iterator[None]:
    """Program, configuration and unit at the places that the documentation names."""
    program = shutil.which("cri-shim")
    assert program is not None
    PROGRAM.symlink_to(program)
    CONFIG_FILE.parent.mkdir()
    CONFIG_FILE.touch()
    shutil.copy(CHECKOUT / "deploy/systemd" / UNIT, UNIT_FILE)
    systemctl("daemon-reload")
    yield
    systemd.stop(UNIT)
    systemd.stop("cri.slice")  # of cri-shim.slice
    journal = ["journalctl", "--unit", UNIT, "--lines", "40", "--no-pager"]
    print(subprocess.run(journal, capture_output=True, text=True, check=True).stdout)
    UNIT_FILE.unlink()
    systemctl("daemon-reload")
    shutil.rmtree(CONFIG_FILE.parent)
    shutil.rmtree("/var/lib/cri-shim")
    PROGRAM.unlink()


@pytest.fixture
def client(installed: None, tmp_path: Path) -> Iterator[Client]:
    """Calls of the unit's daemon."""
    with Client(SOCKET, log_dir=tmp_path) as client:
        yield client


def main_pid() -> int:
    return int(show(UNIT, "MainPID")["MainPID"])


def state() -> str:
    found = show(UNIT, "ActiveState", "SubState", "Result")
    return f"{found['ActiveState']} {found['SubState']} {found['Result']}"


def handlers(client: Client) -> set[str]:
    status = client.runtime.Status(api.StatusRequest(), timeout=60)
    return {handler.name for handler in status.runtime_handlers}


def test_pods_outlive_every_end_of_their_daemon(
    client: Client, archives: list[Path], image: str
) -> None:
    # Type=notify: `start` returns when the daemon has said that it is ready.
    systemctl("start", UNIT)
    assert state() == "active running success"
    assert client.is_serving(timeout_s=10)
    answer = client.runtime.RuntimeConfig(api.RuntimeConfigRequest(), timeout=60)
    assert answer.linux.cgroup_driver == api.SYSTEMD, "what auto comes to where systemd runs"

    client.import_image(archives[0])
    pod = Pod.run(client, image, client.pod_config(host_network=True))
    container = pod.sleeper()
    pid = container_info(client, container)["pid"]
    scope = f"cri-shim-{container}.scope"
    assert cgroups_of(container) == [CGROUP_DIR / "cri.slice/cri-shim.slice" / scope]

    def assert_container_stands() -> None:
        assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x003600\0"
        assert show(scope, "ActiveState")["ActiveState"] == "active"

    def assert_daemon_knows_it() -> None:
        wait_until(lambda: client.is_serving(timeout_s=10), timeout_s=START_S)
        assert_container_stands()
        assert container_info(client, container)["pid"] == pid
        assert pod.asks(container, "echo here") == "here\n"

    first = main_pid()
    systemctl("restart", UNIT)
    assert main_pid() != first
    assert_daemon_knows_it()

    systemctl("stop", UNIT)
    assert state() == "inactive dead success"
    assert not SOCKET.exists()
    assert_container_stands()
    systemctl("start", UNIT)
    assert_daemon_knows_it()

    # A reload takes the new configuration into the running daemon.
    before, known = main_pid(), handlers(client)
    CONFIG_FILE.write_text("runtime: {handlers: {other: {path: crun}}}\n")
    systemctl("reload", UNIT)
    wait_until(lambda: handlers(client) == known | {"other"})
    wait_until(lambda: state() == "active running success")
    assert main_pid() == before

    os.kill(main_pid(), signal.SIGKILL)
    wait_until(lambda: main_pid() not in (0, before), timeout_s=START_S)
    wait_until(lambda: state() == "active running success", timeout_s=START_S)
    assert_daemon_knows_it()

    client.remove_all_pods()
    assert not cgroups_of(container)
    assert not cgroups_of(pod.id)
    wait_until(lambda: not systemd.units(f"*{container}*", f"*{pod.id}*"))
    # No monitor or other process is left in the daemon's own cgroup.
    service = CGROUP_DIR / "system.slice" / UNIT
    assert (service / "cgroup.procs").read_text().split() == [str(main_pid())]
    systemctl("stop", UNIT)
    wait_until(lambda: not service.exists())
    assert " /run/cri-shim" not in Path("/proc/1/mountinfo").read_text()
