"""What tests of containers look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.sandbox.store.model import ContainerState
from tests.fakes.clock import until

if TYPE_CHECKING:
    from cri_shim.sandbox.store.store import Container
    from tests.fakes.kernel import FakeProcess
    from tests.fakes.node_harness import NodeHarness


def process_of(harness: NodeHarness, container: Container) -> FakeProcess:
    """Its first process, which lives."""
    assert container.status.process is not None
    return harness.kernel.processes[container.status.process.pid]


async def exited(container: Container) -> None:
    """Returns once its exit is shown."""
    await until(lambda: container.state is ContainerState.EXITED)
