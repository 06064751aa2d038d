"""Requests of hundreds of kilobytes that are refused, one after the other: the daemon keeps nothing of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.integration.scene import Pod

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.daemon import Daemon

TEXT = "x" * 300_000
VARIABLES = [api.KeyValue(key=f"V{n}", value=b"x" * 100_000) for n in range(3)]
AT_FIRST = 500
"""From then on the allocator has what it needs."""
MORE = 500
MAX_MORE_KIB = 4 << 10


@pytest.fixture
def pod(crash_daemon: Daemon, image: str) -> Pod:
    return Pod.run(crash_daemon.client, image)


def a_text_that_is_too_long(config: api.ContainerConfig) -> None:
    config.working_dir = TEXT


def an_image_that_is_not_there(config: api.ContainerConfig) -> None:
    config.envs.extend(VARIABLES)
    config.image.image = "test.example/none:1"


@pytest.mark.parametrize("mistake", [a_text_that_is_too_long, an_image_that_is_not_there])
def test_memory_stays_where_it_is(
    crash_daemon: Daemon, pod: Pod, mistake: Callable[[api.ContainerConfig], None]
) -> None:
    config = pod.container("true")
    mistake(config)

    def refused(times: int) -> int:
        for _ in range(times):
            with pytest.raises(grpc.RpcError):
                pod.create(config)
        return held_kib(crash_daemon)

    at_first = refused(AT_FIRST)
    assert refused(MORE) - at_first < MAX_MORE_KIB


def held_kib(daemon: Daemon) -> int:
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
