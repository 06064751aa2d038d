"""The harness's daemon is a real one: it starts, crashes, comes back and goes, and leaves nothing."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness.daemon import DaemonError

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

pytestmark = pytest.mark.integration


def test_pod_with_a_container_lives_its_whole_life(client: Client, image: str) -> None:
    config = client.pod_config(host_ports={18080: 80})
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sh", "-c", "exit 7"]), config)
    assert client.wait_exited(container).exit_code == 7
    client.remove(container)
    client.stop_pod(pod)
    client.remove_pod(pod)
    assert client.pods() == []


def test_pods_of_a_test_are_taken_away_after_it(client: Client, image: str) -> None:
    config = client.pod_config()
    client.run(client.run_pod(config), client.container_config(image, ["sleep", "60"]), config)


def test_pods_survive_a_crash_and_a_restart(crash_daemon: Daemon, image: str) -> None:
    client = crash_daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sleep", "60"]), config)
    crash_daemon.kill9()
    crash_daemon.start()
    assert client.status(container).status.state == api.CONTAINER_RUNNING
    crash_daemon.restart()
    assert client.status(container).status.state == api.CONTAINER_RUNNING


def test_daemon_kills_itself_at_a_failpoint_and_recovery_cleans_up(crash_daemon: Daemon) -> None:
    crash_daemon.stop()
    crash_daemon.start(failpoint="sandbox process 1 kill")
    with pytest.raises(grpc.RpcError):
        crash_daemon.client.run_pod(crash_daemon.client.pod_config())
    assert crash_daemon.wait_ended() == -signal.SIGKILL
    assert "step process: kill" in crash_daemon.log()
    crash_daemon.start()
    assert crash_daemon.client.pods() == []


def test_error_at_a_failpoint_is_undone_and_reported(crash_daemon: Daemon) -> None:
    crash_daemon.stop()
    crash_daemon.start(failpoint="sandbox network 1 raise")
    with pytest.raises(grpc.RpcError, match="failpoint: sandbox"):
        crash_daemon.client.run_pod(crash_daemon.client.pod_config())
    assert crash_daemon.client.pods() == []


def test_daemon_that_cannot_start_says_why(daemons: Daemons) -> None:
    broken = daemons.create(settings={"no_such_key": 1})
    try:
        with pytest.raises(DaemonError, match="no_such_key"):
            broken.start()
    finally:
        daemons.destroy(broken)
