"""What tests of containers look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.sandbox.model import ContainerState
from tests.fakes.house import until

if TYPE_CHECKING:
    from cri_shim.sandbox.store import Container
    from tests.fakes.house import House
    from tests.fakes.kernel import FakeProcess


def process_of(house: House, container: Container) -> FakeProcess:
    """Its first process, which lives."""
    assert container.status.process is not None
    return house.kernel.processes[container.status.process.pid]


async def exited(container: Container) -> None:
    """Returns once its exit is shown."""
    await until(lambda: container.state is ContainerState.EXITED)
