"""Running `cri-shim status` and `wipe` in a test, and what a node may look like to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cli.parser import Parser
from cri_shim.cli.status_reading import Sight

if TYPE_CHECKING:
    from types import ModuleType

POD, POD_2, MAIN, SIDE = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
SECOND_NS = 1_000_000_000


def command(module: ModuleType, *words: str) -> int:
    """The command's exit code."""
    parser = Parser("cri-shim")
    module.configure(parser)
    code: int = module.run(parser.parse_args(words))
    return code


def operation(name: str, subject: str, *steps: str, object_id: str = "") -> admin.Operation:
    """One that began 12 s ago, and came to its steps 3 s ago."""
    return admin.Operation(
        operation=name,
        object=object_id,
        subject=subject,
        seconds=12,
        steps=[admin.OperationStep(step=each, seconds=3) for each in steps],
    )


def sight(*operations: admin.Operation) -> Sight:
    """Two pods, one of them with two containers, one of which runs."""

    def container(object_id: str, name: str, *, runs: bool) -> api.Container:
        return api.Container(
            id=object_id,
            pod_sandbox_id=POD,
            metadata=api.ContainerMetadata(name=name, attempt=2),
            state=api.CONTAINER_RUNNING if runs else api.CONTAINER_EXITED,
            created_at=50 * SECOND_NS,
        )

    stats = api.ContainerStats(attributes=api.ContainerAttributes(id=MAIN))
    stats.cpu.usage_nano_cores.value = 25_000_000
    stats.memory.working_set_bytes.value = 3 << 20
    return Sight(
        at_ns=100 * SECOND_NS,
        pods=(
            api.PodSandbox(
                id=POD_2,
                metadata=api.PodSandboxMetadata(name="db", namespace="default"),
                state=api.SANDBOX_NOTREADY,
                created_at=80 * SECOND_NS,
            ),
            api.PodSandbox(
                id=POD,
                metadata=api.PodSandboxMetadata(name="web", namespace="default"),
                state=api.SANDBOX_READY,
                created_at=40 * SECOND_NS,
            ),
        ),
        containers=(
            container(SIDE, "side", runs=False),
            container(MAIN, "main", runs=True),
        ),
        stats={MAIN: stats},
        operations=operations,
    )
