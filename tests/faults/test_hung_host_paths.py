"""Volumes, logs and devices on a file system that never answers: the pods that name them wait, and nobody else does."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import grpc

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.test_hanging_starts import lead_a_life
from tests.harness.hung_fuse import hung_fuse
from tests.integration.scene import Pod

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.daemon import Daemon

HUNG = 12
"""Calls at a time: more than asyncio's own pool has threads on a machine like the tests'."""


def looks_at_everything(pod: Pod, daemon: Daemon) -> None:
    """What else kubelet and an operator ask for."""
    client = pod.client
    container = pod.sleeper()
    client.runtime.ListContainerStats(api.ListContainerStatsRequest(), timeout=20)
    client.images.ImageFsInfo(api.ImageFsInfoRequest(), timeout=20)
    assert daemon.cli("status").returncode == 0
    client.stop(container)
    client.remove(container)


def test_volumes_that_never_answer_hold_up_no_other_pod(
    crash_daemon: Daemon, image: str, tmp_path: Path
) -> None:
    client = crash_daemon.client
    hung_dir = tmp_path / "dead"
    hung_dir.mkdir()
    victim = Pod.run(client, image)
    attackers = [Pod.run(client, image) for _ in range(3)]

    def with_a_volume(pod: Pod, number: int) -> None:
        config = pod.container("sleep", "60")
        config.mounts.add(container_path="/v", host_path=str(hung_dir / str(number)))
        pod.create(config)

    def with_a_device(pod: Pod, number: int) -> None:
        config = pod.container("sleep", "60")
        config.devices.add(
            container_path="/dev/x", host_path=str(hung_dir / f"dev{number}"), permissions="r"
        )
        pod.create(config)

    def with_a_log(number: int) -> None:
        config = client.pod_config()
        config.log_directory = str(hung_dir / f"log{number}")
        request = api.RunPodSandboxRequest(config=config)
        client.runtime.RunPodSandbox(request, timeout=60)

    calls: list[Callable[[], None]] = []
    for number in range(HUNG // 3):
        pod = attackers[number % len(attackers)]
        calls += [
            partial(with_a_volume, pod, number),
            partial(with_a_device, pod, number),
            partial(with_a_log, number),
        ]
    with ThreadPoolExecutor(HUNG) as threads, hung_fuse(hung_dir):
        under_way = [threads.submit(call) for call in calls]
        time.sleep(0.5)  # all of them have come to where they hang
        lead_a_life(victim)
        looks_at_everything(victim, crash_daemon)
        assert not any(call.done() for call in under_way), "they did not hang"
    for call in under_way:
        assert isinstance(call.exception(), grpc.RpcError)
