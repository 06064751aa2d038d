"""The clock is wrong at boot, and set while pods run: times stay in order, durations go by another clock."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.looking import container_state, pod_state, wait_until
from tests.faults.shifted_clock import ShiftedClock
from tests.harness import procs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.daemon import Daemon

YEAR_S = 365 * 86400.0
DEAF = "trap '' TERM; while :; do sleep 0.02; done"


@pytest.fixture
def clock(crash_daemon: Daemon, tmp_path: Path) -> Iterator[ShiftedClock]:
    clock = ShiftedClock(crash_daemon, tmp_path / "shift")
    yield clock
    clock.end()
    crash_daemon.kill9()


def times(status: api.ContainerStatus) -> list[int]:
    return [status.created_at, status.started_at, *filter(None, [status.finished_at])]


def exec_left_behind(daemon: Daemon, container: str) -> None:
    """A daemon dies while a command runs in the container."""

    def call() -> None:
        with pytest.raises(grpc.RpcError):
            daemon.client.exec(container, "sleep", "4321", timeout_s=0)

    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: sleeps(container), "the exec runs")
    daemon.kill9()
    caller.join()


def sleeps(container: str) -> bool:
    return any(p.command == "sleep 4321" for p in procs.processes_naming(container))


@pytest.mark.parametrize("years", [-56, pytest.param(20, marks=pytest.mark.slow)])
def test_clock_that_was_wrong_at_boot_is_set_right(
    crash_daemon: Daemon, clock: ShiftedClock, image: str, years: int
) -> None:
    client = crash_daemon.client
    at_boot_s = 60 - time.time() if years < 0 else years * YEAR_S
    crash_daemon.kill9()
    clock.shift(at_boot_s)
    crash_daemon.start()
    config = client.pod_config()
    pod = client.run_pod(config)
    container = client.run(pod, client.container_config(image, ["sh", "-c", DEAF]), config)
    wanted = client.container_config(image, ["sh", "-c", "exit 5"])
    later = client.create(pod, wanted, config)
    created_at = client.pod_status(pod).status.created_at
    assert abs(created_at / 1e9 - (time.time() + at_boot_s)) < 60
    assert created_at > 0
    # Set right while the daemon runs, in the middle of a grace period.
    began = time.monotonic()
    stopping = client.runtime.StopContainer.future(
        api.StopContainerRequest(container_id=container, timeout=1), timeout=30
    )
    time.sleep(0.3)
    clock.shift(0)
    stopping.result()
    assert 1 <= time.monotonic() - began < 5
    client.start(later)
    assert client.wait_exited(later).exit_code == 5
    for each in (container, later):
        told = times(client.status(each).status)
        assert told == sorted(told)
        assert len(told) == 3
    third = client.run(pod, client.container_config(image, ["sh", "-c", "sleep 600; :"]), config)
    exec_left_behind(crash_daemon, third)
    clock.shift(-at_boot_s)
    crash_daemon.start()
    assert not sleeps(third)
    assert container_state(client, third) == "CONTAINER_RUNNING"
    assert pod_state(client, pod) == "SANDBOX_READY"
    assert client.run_pod(config) == pod
    client.stop(third)
    told = times(client.status(third).status)
    assert told == sorted(told)
