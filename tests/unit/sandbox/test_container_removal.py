"""What a container owns goes, whatever state it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError

if TYPE_CHECKING:
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("started", [False, True], ids=["created", "running"])
async def test_nothing_is_left_of_it(harness: NodeHarness, *, started: bool) -> None:
    sandbox = await harness.run_pod()
    make = harness.start if started else harness.create
    container = await make(sandbox)
    await harness.removal.destroy(container)
    assert list(harness.stored) == []
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


async def test_what_could_not_be_taken_away_keeps_its_record_and_goes_at_the_next_try(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    harness.points.fail("cgroup.remove", CriShimError("busy"))
    with pytest.raises(CriShimError, match="busy"):
        await harness.removal.destroy(container)
    assert list(harness.stored) == [container]
    harness.points.heal()
    await harness.removal.destroy(container)
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


async def test_an_image_that_was_removed_before_its_container_is_swept_with_it(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    harness.images.forget("busybox")
    await harness.removal.destroy(container)
    assert harness.images.sweeps == 1
