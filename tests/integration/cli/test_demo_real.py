"""`cri-shim demo` on a real daemon, with real images, networks, monitors and kernel."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.daemon import environment

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

DEADLINE_S = 20.0


def left_by_demos() -> list[Path]:
    return list(Path("/run").glob("cri-shim-demo-*"))


def test_the_demo_proves_a_pod_and_leaves_nothing(crash_daemon: Daemon) -> None:
    shown = crash_daemon.cli("demo").stdout
    assert f"on network {crash_daemon.name}" in shown
    assert "stdout F hello from pod hello-" in shown
    assert "the container ended with exit code 0" in shown
    assert "the demo succeeded" in shown
    assert crash_daemon.client.pods() == []
    assert left_by_demos() == []


def test_a_kept_pod_runs_until_it_is_removed(crash_daemon: Daemon) -> None:
    shown = crash_daemon.cli("demo", "--keep").stdout
    [container] = crash_daemon.client.containers()
    assert f"crictl logs {container.id[:13]}" in shown
    assert crash_daemon.client.exec(container.id, "hostname").stdout.startswith(b"hello-")
    [log_dir] = left_by_demos()
    crash_daemon.client.remove_all_pods()
    for file in log_dir.iterdir():
        file.unlink()
    log_dir.rmdir()


def test_a_network_that_fails_is_told_and_nothing_is_left(crash_daemon: Daemon) -> None:
    conflist = crash_daemon.default_conflist()
    conflist["plugins"].append({"type": "tuning", "sysctl": {"net.ipv4.no_such_thing": "1"}})
    crash_daemon.write_conflist(conflist)
    done = crash_daemon.cli("demo", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cri-shim: the demo failed at step 3 of 9, pod: ")
    assert "CNI plugin tuning: ADD: " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert crash_daemon.client.pods() == []
    assert left_by_demos() == []


@pytest.mark.parametrize("step", ["[2/9]", "[3/9]", "[4/9]", "[6/9]", "[9/9]"])
def test_a_demo_that_is_interrupted_leaves_nothing(crash_daemon: Daemon, step: str) -> None:
    argv = [sys.executable, "-m", "cri_shim", "demo", "--config", str(crash_daemon.config_file)]
    with subprocess.Popen(
        argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(step):
                process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.wait(DEADLINE_S) == 128 + signal.SIGINT
        assert process.stderr.read().strip().startswith("interrupted: waiting for")
    assert crash_daemon.client.pods() == []
    assert left_by_demos() == []


def test_a_daemon_that_dies_in_the_middle_is_told(crash_daemon: Daemon) -> None:
    argv = [sys.executable, "-m", "cri_shim", "demo", "--config", str(crash_daemon.config_file)]
    with subprocess.Popen(
        argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("[5/9]"):
                crash_daemon.kill9()
        assert process.wait(DEADLINE_S) == 1
        told = process.stderr.read()
    assert "not everything could be removed" in told
    assert f"crictl -r unix://{crash_daemon.socket} rmp -f " in told
    for log_dir in left_by_demos():
        log_dir.rmdir()
    crash_daemon.start()
    deadline = time.monotonic() + DEADLINE_S
    while not crash_daemon.client.pods() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(crash_daemon.client.pods()) == 1, "its pod survived the daemon"
