"""Everything of a root taken away, whatever of it fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CniPluginError, CriShimError, UnavailableError
from cri_shim.ids import new_id
from cri_shim.paths import netns_file
from cri_shim.sandbox.recovery import wipe as wipe_module
from tests.fakes.clock import turn_over
from tests.fakes.node_harness import container_config, pod_config

if TYPE_CHECKING:
    from cri_shim.sandbox.recovery.wipe import Wiped
    from tests.fakes.clock import MovableClock
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio


async def wiped(harness: NodeHarness) -> Wiped:
    return await harness.wipe.run(images=False, tell=lambda *_: None)


async def populate(harness: NodeHarness, count: int = 3) -> list[str]:
    """Pods with a container each; their sandboxes."""
    ids = []
    for number in range(count):
        config = pod_config(f"web-{number}")
        ids.append(await harness.pods.run_pod_sandbox(config, ""))
        await harness.containers.create_container(ids[-1], container_config(), config)
    return ids


async def test_pods_and_containers_go_and_the_daemon_serve_on(harness: NodeHarness) -> None:
    await populate(harness)
    said: list[tuple[str, int, int]] = []
    result = await harness.wipe.run(images=False, tell=lambda *step: said.append(step))
    assert (result.sandboxes, result.containers, result.leftovers, result.left) == (3, 3, 0, [])
    assert harness.leftovers() == {}
    assert said[0] == ("undoing creations in progress", 0, 0)
    assert said[-1] == ("removing pods", 3, 3)
    await populate(harness, 1)
    assert (await wiped(harness)).sandboxes == 1
    assert (await wiped(harness)).sandboxes == 0


async def test_what_is_being_made_is_undone_when_it_does_not_become_complete(
    harness: NodeHarness, clock: MovableClock
) -> None:
    hold = harness.points.hold("cni.add")
    creation = asyncio.ensure_future(harness.pods.run_pod_sandbox(pod_config(), ""))
    await hold.reached.wait()
    wiping = asyncio.ensure_future(wiped(harness))
    await turn_over()
    clock.move(wipe_module.CREATIONS_GRACE_S)
    await wiping
    with pytest.raises(UnavailableError):
        await creation
    assert harness.leftovers() == {}


async def test_one_that_can_not_be_taken_away_stops_no_other_and_is_told(
    harness: NodeHarness,
) -> None:
    ids = await populate(harness)
    harness.points.fail("cgroup.remove", CriShimError("it is busy"))
    result = await wiped(harness)
    assert result.sandboxes == 0
    assert {left.what for left in result.left} == {
        f"sandbox {each} (default/web-{number})" for number, each in enumerate(ids)
    }
    assert {left.why for left in result.left} == {"it is busy"}
    harness.points.heal()
    assert (await wiped(harness)).left == []
    assert harness.leftovers() == {}


async def test_containers_without_a_pod_go_as_well(harness: NodeHarness) -> None:
    [sandbox_id] = await populate(harness, 1)
    sandbox = harness.sandboxes.get(sandbox_id)
    assert sandbox is not None
    harness.sandboxes.forget(sandbox)
    harness.exits.forget(sandbox_id)
    result = await wiped(harness)
    assert (result.containers, result.leftovers, result.left) == (1, 1, [])
    assert harness.leftovers() == {}


async def test_what_a_plugin_does_not_let_go_of_is_told_and_its_namespace_given_up(
    harness: NodeHarness,
) -> None:
    [sandbox_id] = await populate(harness, 1)
    harness.points.fail("cni.del", CniPluginError("bridge", "DEL", "no way"))
    result = await wiped(harness)
    assert result.sandboxes == 1
    [left] = result.left
    assert left.what == f"attachment of {sandbox_id} (default/web-0) to pods"
    assert "no way" in left.why
    assert not netns_file(sandbox_id).exists()
    harness.points.heal()
    again = await wiped(harness)
    assert (again.attachments, again.left) == (1, [])
    assert harness.leftovers() == {}


async def test_the_cgroup_of_pods_that_name_none_goes_when_it_is_empty(
    harness: NodeHarness,
) -> None:
    harness.kernel.cgroups.dirs |= {"cri-shim"}
    await wiped(harness)
    assert harness.kernel.cgroups.dirs == set()
    others = {"cri-shim", f"cri-shim/{new_id()}"}
    harness.kernel.cgroups.dirs |= others
    await wiped(harness)
    assert harness.kernel.cgroups.dirs == others
