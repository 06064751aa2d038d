"""A thousand containers end while no daemon runs: each has its exact code and time after the start, which is quick.

Most are fabricated (see `fabricate`), some are real. How long the start took is printed; what is judged is far more.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.fabricate import copy_container, leave_exit_file, remove_copies
from tests.faults.looking import container_pids, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

MANY = 1000
REAL = 4
HOUR_NS = 3600 * 10**9
START_S = 10.0
"""What a start with all of them may take; it is a second or two on an idle machine."""
OBEDIENT = "trap 'exit 7' TERM; while :; do sleep 0.02; done"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f" {text} ", end="", flush=True)

    return say


def exits_told(client: Client, containers: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Exit code and time of each container, as ContainerStatus tells them."""
    told = {}
    for container in containers:
        status = client.status(container).status
        assert status.state == api.CONTAINER_EXITED
        assert status.reason == ("Completed" if status.exit_code == 0 else "Error")
        told[container] = status.exit_code, status.finished_at
    return told


def exits_kept(daemon: Daemon, containers: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Exit code and time of each container, as its record has them."""
    kept = {}
    for container in containers:
        file = daemon.root / "containers" / container / "status.json"
        status = json.loads(file.read_bytes())
        kept[container] = status["exit_code"], status["finished_at_ns"]
    return kept


def test_thousand_ends_without_a_daemon_are_told_exactly(
    crash_daemon: Daemon, image: str, seed: int, say: Callable[[str], None]
) -> None:
    client = crash_daemon.client
    config = client.pod_config()
    pod = client.run_pod(config)
    wanted = client.container_config(image, ["sh", "-c", OBEDIENT])
    first = client.run(pod, wanted, config)
    real = [first]
    for attempt in range(1, REAL):
        wanted.metadata.attempt = attempt
        real.append(client.run(pod, wanted, config))
    pids = [container_pids(client, container).process for container in real]
    crash_daemon.kill9()
    now = time.time_ns()
    chosen = random.Random(seed)
    expected: dict[str, tuple[int, int]] = {}
    for number in range(MANY):
        began_ns = now - HOUR_NS - number
        container = copy_container(
            crash_daemon, first, number, committed_at_ns=began_ns, started_at_ns=began_ns + 1
        )
        code = chosen.choice([0, 1, 2, 7, 126, 127, 134, 137, 139, 143, 255])
        ended_ns = now - chosen.randrange(HOUR_NS)
        leave_exit_file(crash_daemon, container, code, ended_ns)
        expected[container] = code, ended_ns
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, pids)), "the real ones end")
    time.sleep(0.1)
    for container in real:
        file = crash_daemon.state / "exits" / container
        expected[container] = int(file.read_text()), file.stat().st_mtime_ns
        assert expected[container][0] == 7
    began = time.monotonic()
    crash_daemon.start()
    took = time.monotonic() - began
    assert exits_told(client, expected) == expected
    say(f"{len(expected)} ends, ready after {took:.2f} s")
    assert took < START_S
    # Killed at once, before all of it stands in the records: the exit files tell it to the successor again.
    crash_daemon.kill9()
    crash_daemon.start()
    assert exits_told(client, expected) == expected
    wait_until(lambda: exits_kept(crash_daemon, expected) == expected, "the records have every end")
    crash_daemon.kill9()
    # Their removal is that of any other container, and would take longer than all the rest.
    remove_copies(crash_daemon, expected.keys() - set(real))
    crash_daemon.start()
