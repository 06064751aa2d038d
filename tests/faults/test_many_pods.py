"""Many pods asked for at the same moment: all of them come, all of them go, and the daemon's memory stays small.

Twenty in each run; a hundred, or CRI_SHIM_FAULT_PODS, when asked for (`-m slow`). Speed is printed, not judged: it is
the machine's as much as ours.
"""

from __future__ import annotations

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

SOME = 20
MANY = 100
MAX_RSS_MIB = 160
"""Idle it is some 60 MiB; what a hundred pods in flight may add."""


def at_once(count: int, work: Callable[[int], object]) -> float:
    """Do `work` that often, all begun at one moment; the seconds until the last has ended. Raises what it raises."""
    gate = threading.Barrier(count)

    def one(number: int) -> object:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        began = time.monotonic()
        for done in [threads.submit(one, number) for number in range(count)]:
            done.result()
        return time.monotonic() - began


def rss_mib(pid: int | None, which: str = "VmRSS") -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"{which}:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024


def come_and_go(daemon: Daemon, image: str, count: int, say: Callable[[str], None]) -> None:
    client = daemon.client
    configs = [client.pod_config() for _ in range(count)]
    pods = [""] * count
    containers = [""] * count
    idle = rss_mib(daemon.pid)

    def make(number: int) -> None:
        config = configs[number]
        pods[number] = client.run_pod(config)
        wanted = client.container_config(image, ["sleep", "600"])
        containers[number] = client.run(pods[number], wanted, config)

    took = at_once(count, make)
    full = rss_mib(daemon.pid)
    assert len({item.id for item in client.pods()} & set(pods)) == count
    assert len({item.id for item in client.containers()} & set(containers)) == count
    addresses = {client.pod_status(pod).status.network.ip for pod in pods}
    assert len(addresses) == count
    answered = list_seconds(client)

    def take_away(number: int) -> None:
        client.stop_pod(pods[number])
        client.remove_pod(pods[number])

    gone = at_once(count, take_away)
    peak = rss_mib(daemon.pid, "VmHWM")
    assert client.pods() == client.containers() == []
    say(
        f" {count} pods with a container each: made {count / took:.1f}/s, removed {count / gone:.1f}/s, "
        f"RSS {idle:.0f} MiB idle, {full:.0f} full, {peak:.0f} at most, List {answered * 1000:.1f} ms "
    )
    assert peak < MAX_RSS_MIB


def list_seconds(client: Client) -> float:
    began = time.monotonic()
    client.pods()
    return time.monotonic() - began


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(text: str) -> None:
        with capsys.disabled():
            print(text, end="", flush=True)

    return say


def test_some_pods_at_once_come_and_go(
    crash_daemon: Daemon, image: str, say: Callable[[str], None]
) -> None:
    come_and_go(crash_daemon, image, SOME, say)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_pods_at_once_come_and_go(
    crash_daemon: Daemon, image: str, say: Callable[[str], None]
) -> None:
    come_and_go(crash_daemon, image, int(os.environ.get("CRI_SHIM_FAULT_PODS") or MANY), say)


def test_pods_that_are_being_made_when_the_daemon_dies_come_on_retry(
    crash_daemon: Daemon, image: str
) -> None:
    client = crash_daemon.client
    configs = [client.pod_config() for _ in range(SOME)]
    asked = [
        client.runtime.RunPodSandbox.future(api.RunPodSandboxRequest(config=config), timeout=60)
        for config in configs
    ]
    next(iter(asked)).result()
    crash_daemon.kill9()
    acknowledged = {
        number: call.result().pod_sandbox_id
        for number, call in enumerate(asked)
        if call.exception() is None
    }
    crash_daemon.start()
    listed = {item.id for item in client.pods()}
    assert set(acknowledged.values()) <= listed
    pods = {number: client.run_pod(config) for number, config in enumerate(configs)}
    assert acknowledged.items() <= pods.items()
    assert {item.id for item in client.pods()} == set(pods.values())
