"""What is left of objects whose record is gone: found by what this root names, and taken away by the ID alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.attachment import Attachment
from cri_shim.ids import new_id
from cri_shim.paths import netns_file
from cri_shim.sandbox.store.model import Process
from cri_shim.sandbox.store.processes import note_top_process
from tests.fakes.node_harness import container_config, pod_config
from tests.fakes.runtime import leave_exit_file

if TYPE_CHECKING:
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio


async def test_an_id_is_known_by_whatever_of_it_is_left(harness: NodeHarness) -> None:
    paths = harness.paths
    names = [new_id() for _ in range(8)]
    paths.sandbox(names[0]).root_dir.mkdir()
    paths.container(names[1]).state_dir.mkdir()
    leave_exit_file(paths.exits_dir, names[2], 0)
    (paths.runtime_root("a-former-handler") / names[3]).mkdir(parents=True)
    (paths.damaged_dir / f"{names[4]}-123").mkdir(parents=True)
    harness.kernel.spawn(("conmon", "--cid", names[5]))
    (paths.containers_dir / "lost+found").mkdir()
    (paths.exits_dir / f"{names[6]}.A1B2C3").touch()
    # A namespace that looks like ours may be another root's.
    netns_file(names[7]).touch()
    assert await harness.orphans.ids() == sorted(names[:7])


async def test_all_of_it_goes(harness: NodeHarness) -> None:
    sandbox_id = await harness.pods.run_pod_sandbox(pod_config(), "")
    container_id = await harness.containers.create_container(
        sandbox_id, container_config(), pod_config()
    )
    for store, paths in (
        (harness.sandboxes, harness.paths.sandbox(sandbox_id)),
        (harness.stored, harness.paths.container(container_id)),
    ):
        paths.record_file.write_text("{")
        item = store.get(paths.root_dir.name)
        assert item is not None
        store.forget(item)  # type: ignore[arg-type]
        harness.exits.forget(item.id)
    for each in (container_id, sandbox_id):
        await harness.orphans.remove(each)
        await harness.orphans.remove(each)
    assert harness.leftovers() == {}


async def test_a_cgroup_is_found_without_any_process_in_it(harness: NodeHarness) -> None:
    object_id = new_id()
    harness.kernel.cgroups.dirs |= {f"kubepods/pod1/{object_id}", f"kubepods/pod1/{new_id()}"}
    await harness.orphans.remove(object_id)
    assert len(harness.kernel.cgroups.dirs) == 1


async def test_what_is_attached_by_the_cni_cache_is_given_back(harness: NodeHarness) -> None:
    object_id = new_id()
    attachment = Attachment(object_id, str(netns_file(object_id)), "eth0", "pods")
    harness.cni.attached["pods", object_id, "eth0"] = attachment
    netns_file(object_id).touch()
    await harness.orphans.remove(object_id)
    assert harness.cni.attached == {}
    assert not netns_file(object_id).exists()


async def test_damaged_objects_that_were_set_aside_go_with_their_monitor(
    harness: NodeHarness,
) -> None:
    object_id = new_id()
    kept = harness.paths.damaged_dir / f"{object_id}-1"
    kept.mkdir(parents=True)
    (kept / "upper").mkdir()
    monitor = harness.kernel.spawn(("conmon", "--cid", object_id))
    state = harness.paths.container(object_id)
    state.state_dir.mkdir()
    note_top_process(state, Process(monitor.pid, monitor.start_ticks))
    await harness.orphans.remove(object_id)
    assert list(harness.paths.damaged_dir.iterdir()) == []
    assert harness.leftovers() == {}
