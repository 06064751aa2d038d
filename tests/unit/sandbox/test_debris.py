"""What is left of objects whose record is gone: found by what this root names, and taken away by the ID alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.attachment import Attachment
from cri_shim.ids import new_id
from cri_shim.paths import netns_file
from cri_shim.sandbox.model import Process
from cri_shim.sandbox.release import note_monitor
from tests.fakes.house import container_config, pod_config
from tests.fakes.runtime import leave_exit_file

if TYPE_CHECKING:
    from tests.fakes.house import House

pytestmark = pytest.mark.asyncio


async def test_an_id_is_known_by_whatever_of_it_is_left(house: House) -> None:
    paths = house.paths
    names = [new_id() for _ in range(8)]
    paths.sandbox(names[0]).root_dir.mkdir()
    paths.container(names[1]).state_dir.mkdir()
    leave_exit_file(paths.exits_dir, names[2], 0)
    (paths.runtime_root("a-former-handler") / names[3]).mkdir(parents=True)
    (paths.damaged_dir / f"{names[4]}-123").mkdir(parents=True)
    house.kernel.spawn(("conmon", "--cid", names[5]))
    (paths.containers_dir / "lost+found").mkdir()
    (paths.exits_dir / f"{names[6]}.A1B2C3").touch()
    # A namespace that looks like ours may be another root's.
    netns_file(names[7]).touch()
    assert await house.debris.ids() == sorted(names[:7])


async def test_all_of_it_goes(house: House) -> None:
    sandbox_id = await house.pods.run_pod_sandbox(pod_config(), "")
    container_id = await house.containers.create_container(
        sandbox_id, container_config(), pod_config()
    )
    for store, paths in (
        (house.sandboxes, house.paths.sandbox(sandbox_id)),
        (house.stored, house.paths.container(container_id)),
    ):
        paths.record_file.write_text("{")
        item = store.get(paths.root_dir.name)
        assert item is not None
        store.forget(item)  # type: ignore[arg-type]
        house.exits.forget(item.id)
    for each in (container_id, sandbox_id):
        await house.debris.remove(each)
        await house.debris.remove(each)
    assert house.leftovers() == {}


async def test_a_cgroup_is_found_without_any_process_in_it(house: House) -> None:
    object_id = new_id()
    house.kernel.cgroups.dirs |= {f"kubepods/pod1/{object_id}", f"kubepods/pod1/{new_id()}"}
    await house.debris.remove(object_id)
    assert len(house.kernel.cgroups.dirs) == 1


async def test_what_is_attached_by_the_cni_cache_is_given_back(house: House) -> None:
    object_id = new_id()
    attachment = Attachment(object_id, str(netns_file(object_id)), "eth0", "pods")
    house.cni.attached["pods", object_id, "eth0"] = attachment
    netns_file(object_id).touch()
    await house.debris.remove(object_id)
    assert house.cni.attached == {}
    assert not netns_file(object_id).exists()


async def test_damaged_objects_that_were_set_aside_go_with_their_monitor(house: House) -> None:
    object_id = new_id()
    kept = house.paths.damaged_dir / f"{object_id}-1"
    kept.mkdir(parents=True)
    (kept / "upper").mkdir()
    monitor = house.kernel.spawn(("conmon", "--cid", object_id))
    state = house.paths.container(object_id)
    state.state_dir.mkdir()
    note_monitor(state, Process(monitor.pid, monitor.start_ticks))
    await house.debris.remove(object_id)
    assert list(house.paths.damaged_dir.iterdir()) == []
    assert house.leftovers() == {}
