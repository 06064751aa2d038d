"""Attacks by what runs in a container."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api

if TYPE_CHECKING:
    from tests.faults.tenants.tenant import Tenant

PROCESSES = 5_000


def processes_of_an_exec(tenant: Tenant) -> None:
    """An exec that makes thousands of processes, and is ended amid them."""
    pod = tenant.pod()
    container = pod.sleeper()
    script = f"i=0; while [ $i -lt {PROCESSES} ]; do sleep 1000000 & i=$((i+1)); done; wait"
    tenant.begin()

    def exec_it() -> None:
        request = api.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script], timeout=1)
        tenant.client.runtime.ExecSync(request, timeout=60)

    tenant.again_and_again(exec_it)


def files_of_a_layer(tenant: Tenant) -> None:
    """Very many files in a writable layer, while everybody asks how large it is."""
    pod = tenant.pod()
    script = "i=0; while :; do mkdir -p /d/$i; (cd /d/$i; seq 1000 | xargs touch); i=$((i+1)); done"
    container = pod.start(pod.container("sh", "-c", script))
    request = api.ContainerStatsRequest(container_id=container)
    tenant.begin()

    def ask() -> None:
        tenant.client.runtime.ContainerStats(request, timeout=60)

    tenant.at_once(*[partial(tenant.again_and_again, ask)] * 4)
    tenant.client.stop(container)
