"""Attacks by what runs in a container."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.sandbox.spec.pod_files import MEMORY_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.tenants.tenant import Tenant

PROCESSES = 5_000
POD_FILE_BYTES = MEMORY_BYTES
MAX_ON_DISK_BYTES = 1 << 20
"""Of what the daemon keeps for a pod: its records."""


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


def files_of_the_pod(tenant: Tenant) -> None:
    """A container that writes into the files that the daemon keeps for its pod."""
    pod = tenant.pod()
    files = "/etc/resolv.conf /etc/hosts /etc/hostname"
    write = f"for file in {files}; do head -c {POD_FILE_BYTES} /dev/zero >> $file; done"
    container = pod.sleeper()
    tenant.begin()

    def exec_it() -> None:
        request = api.ExecSyncRequest(container_id=container, cmd=["sh", "-c", write], timeout=30)
        tenant.client.runtime.ExecSync(request, timeout=60)

    tenant.again_and_again(exec_it)
    on_disk = _allocated(tenant.daemon.root / "sandboxes" / pod.id)
    assert on_disk < MAX_ON_DISK_BYTES, f"its pod has {on_disk} bytes on the node's disk"
    in_memory = _allocated(tenant.daemon.state / "sandboxes" / pod.id)
    most = MEMORY_BYTES + MAX_ON_DISK_BYTES
    assert in_memory < most, f"its pod has {in_memory} bytes in the node's memory"


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


def _allocated(tree: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in tree.rglob("*") if path.is_file())
