"""Whose exit it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.sandbox.store.model import ContainerState, SandboxState

if TYPE_CHECKING:
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio


async def test_an_exit_reaches_the_container_or_the_pod_that_it_is_of(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    assert container.status.process is not None
    assert sandbox.status.process is not None
    harness.kernel.end(container.status.process.pid, 3)
    await harness.settle()
    assert (container.state, container.status.exit_code) == (ContainerState.EXITED, 3)
    assert sandbox.status.is_complete
    harness.kernel.end(sandbox.status.process.pid, 4)
    await harness.settle()
    assert sandbox.state is SandboxState.NOT_READY
    assert [(who, exit_.code) for who, exit_ in harness.reported] == [
        (container.id, 3),
        (sandbox.id, None),
    ]


async def test_an_exit_of_nobody_known_concerns_nobody(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    harness.report_exit("f" * 64, 1)
    await harness.settle()
    assert sandbox.state is SandboxState.READY
