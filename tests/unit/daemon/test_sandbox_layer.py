"""That the objects of the sandbox layer are given each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.fakes.node_harness import NodeHarness, open_harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeHarness]:
    async with open_harness(tmp_path, monkeypatch) as opened:
        yield opened


async def test_a_pod_stops_and_removes_its_containers(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    await harness.pods.stop_pod_sandbox(sandbox.id)
    assert container.ended.is_set()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


async def test_wipe_removes_the_configured_cgroup(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await harness.start(sandbox)
    harness.kernel.cgroups.dirs.add("cri-shim")
    await harness.wipe.run(images=False, tell=lambda *_: None)
    assert harness.leftovers() == {}
