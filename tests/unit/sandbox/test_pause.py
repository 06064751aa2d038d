"""Pause containers: run by the runtime alone, or created under a monitor where they bring a kernel of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import RuntimeCommandError
from cri_shim.sandbox.store.processes import read_top_process
from tests.fakes.node_harness import pod_config

if TYPE_CHECKING:
    from cri_shim.sandbox.store.store import Sandbox
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio


async def a_pod(harness: NodeHarness, handler: str) -> Sandbox:
    return harness.pods.find(await harness.pods.run_pod_sandbox(pod_config(), handler))


async def test_one_on_the_nodes_kernel_is_run_and_has_no_monitor(harness: NodeHarness) -> None:
    sandbox = await a_pod(harness, "runc")
    assert harness.monitors.requests == []
    assert sandbox.status.monitor is None
    assert read_top_process(harness.paths.sandbox(sandbox.id)) == sandbox.status.process


async def test_one_with_a_kernel_of_its_own_is_created_under_a_monitor_and_started(
    harness: NodeHarness,
) -> None:
    sandbox = await a_pod(harness, "kata")
    (request,) = harness.monitors.requests
    assert (request.container_id, request.joins_sandbox) == (sandbox.id, False)
    assert harness.runtimes["kata"].containers[sandbox.id].status == "running"
    assert sandbox.status.monitor is not None
    assert read_top_process(harness.paths.sandbox(sandbox.id)) == sandbox.status.monitor
    assert sandbox.status.process not in (None, sandbox.status.monitor)


async def test_one_that_was_created_and_does_not_start_is_taken_away(harness: NodeHarness) -> None:
    refusal = RuntimeCommandError("starting", ["kata"], "failed", "no agent")
    harness.points.fail("runtime.start", refusal)
    with pytest.raises(RuntimeCommandError, match="no agent"):
        await a_pod(harness, "kata")
    assert harness.leftovers() == {}
