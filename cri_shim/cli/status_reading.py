"""Reads the data of `cri-shim status` from the daemon: CRI's lists and statistics, and the operations under way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import UnavailableError
from cri_shim.rpc.client import errors_of

if TYPE_CHECKING:
    from cri_shim.rpc.client import Client

TIMEOUT_S: Final = 10.0
RATE_SPAN_S: Final = 0.6
"""The daemon has a CPU rate half a second after it was first asked for one."""
MAX_LOOKS: Final = 3
"""At statistics that lack a rate: a busy daemon may take longer."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The state of the node at one time."""

    at_ns: int
    pods: tuple[api.PodSandbox, ...] = ()
    containers: tuple[api.Container, ...] = ()
    stats: dict[str, api.ContainerStats] = field(default_factory=dict)
    """By container ID."""
    operations: tuple[admin.Operation, ...] = ()
    trouble: str = ""
    """Why there are no lists: the daemon is recovering or stopping."""


def look(client: Client) -> Sight:
    """Read the state. Raises the daemon's errors; UnavailableError if the daemon does not answer."""
    with errors_of("cannot list the operations under way"):
        answer = client.admin.Operations(admin.OperationsRequest(), timeout=TIMEOUT_S)
    operations = tuple(answer.operations)
    try:
        with errors_of("cannot list pods and containers"):
            pods = [
                pod
                for piece in client.runtime.StreamPodSandboxes(
                    api.StreamPodSandboxesRequest(), timeout=TIMEOUT_S
                )
                for pod in piece.pod_sandboxes
            ]
            containers = [
                container
                for piece in client.runtime.StreamContainers(
                    api.StreamContainersRequest(), timeout=TIMEOUT_S
                )
                for container in piece.containers
            ]
            stats = _stats(client)
            running = {c.id for c in containers if c.state == api.CONTAINER_RUNNING}
            for _ in range(MAX_LOOKS - 1):
                if all(_has_rate(stats[each]) for each in running & stats.keys()):
                    break
                time.sleep(RATE_SPAN_S)
                stats = _stats(client)
    except UnavailableError as error:
        return Sight(time.time_ns(), operations=operations, trouble=str(error))
    return Sight(time.time_ns(), tuple(pods), tuple(containers), stats, operations)


def _stats(client: Client) -> dict[str, api.ContainerStats]:
    request = api.StreamContainerStatsRequest()
    return {
        each.attributes.id: each
        for piece in client.runtime.StreamContainerStats(request, timeout=TIMEOUT_S)
        for each in piece.container_stats
    }


def _has_rate(stats: api.ContainerStats) -> bool:
    return stats.cpu.HasField("usage_nano_cores")
