"""A repair brings what is damaged and nothing else, and takes nothing from under a container."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cri_shim.errors import CriShimError
from cri_shim.image.integrity.report import Damage
from tests.fakes.registry import Answer
from tests.fakes.unpacker import MARK
from tests.unit.image.integrity.test_check import BASE, OTHER, TOP, Pulled, alter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.host.process import Reaper
    from cri_shim.image.integrity.report import RepairReport
    from cri_shim.image.model import Image
    from tests.fakes.registry import FakeRegistry
    from tests.unit.image.conftest import Node

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def pulled(node: Node, registry: FakeRegistry, reaper: Reaper) -> AsyncIterator[Pulled]:
    await node.open(reaper=reaper)
    registry.add("team/app", BASE, TOP, tag="1")
    registry.add("team/other", BASE, OTHER, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    other = await node.puller.pull(f"{registry.host}/team/other:1")
    registry.seen.clear()
    yield Pulled(node, registry, image, other)
    assert node.leftovers() == []


async def no_pull(name: str) -> Image:
    raise CriShimError(f"{name}: no registry was to be asked")


async def mended(pulled: Pulled, *, registry: bool) -> RepairReport:
    """Repair everything; afterwards all is sound, now and after a restart."""
    pull = pulled.node.puller.pull if registry else no_pull
    report = await pulled.node.store.repair(pull=pull)
    assert report.left == ()
    damaged = [each for each in report.checked.findings if each.damage is not Damage.UNVERIFIED]
    assert list(report.repaired) == damaged
    after = await pulled.node.store.check()
    assert after.sound
    for image in (pulled.image, pulled.other):
        now = pulled.node.store.find(image.id)
        assert now is not None
        assert set(now.repo_tags + now.repo_digests) == set(image.repo_tags + image.repo_digests)
    return report


async def reopened(pulled: Pulled, reaper: Reaper) -> None:
    await pulled.node.open(reaper=reaper)
    await pulled.node.store.sweep()


async def test_what_is_sound_is_left_alone(pulled: Pulled) -> None:
    before = pulled.node.store.layer_stack(pulled.image)
    assert (await mended(pulled, registry=False)).repaired == ()
    assert pulled.node.store.layer_stack(pulled.image) == before


@pytest.mark.parametrize("damage", ["altered", "missing"])
async def test_a_layer_is_unpacked_again_from_the_blob_that_is_here(
    pulled: Pulled, reaper: Reaper, damage: str
) -> None:
    right = (pulled.tree(1) / MARK).read_bytes()
    if damage == "altered":
        alter(pulled.tree(1) / MARK)
    else:
        pulled.tree(1).rename(pulled.node.root / "away")
    await mended(pulled, registry=False)
    assert (pulled.tree(1) / MARK).read_bytes() == right
    await reopened(pulled, reaper)
    assert (await pulled.node.store.check()).sound
    assert (pulled.tree(1) / MARK).read_bytes() == right


async def test_a_container_keeps_the_directory_it_stands_on(pulled: Pulled, reaper: Reaper) -> None:
    store = pulled.node.store
    usage = await store.fs_usage()
    old = pulled.tree(1)
    pulled.node.in_use |= set(store.layer_stack(pulled.image).lowers)
    alter(old / MARK)
    await mended(pulled, registry=False)
    new = pulled.tree(1)
    assert new != old
    assert old.is_dir()
    await reopened(pulled, reaper)
    assert old.is_dir()
    assert pulled.tree(1) == new
    pulled.node.in_use.clear()
    await pulled.node.store.sweep()
    assert not old.exists()
    assert await pulled.node.store.fs_usage() == usage


async def test_the_end_of_the_last_container_takes_the_old_directory(pulled: Pulled) -> None:
    old = pulled.tree(1)
    pulled.node.in_use |= {old.name}
    alter(old / MARK)
    await mended(pulled, registry=False)
    pulled.node.in_use.clear()
    await pulled.node.store.sweep_after(pulled.image.id)
    assert not old.exists()


async def test_work_that_holds_an_image_keeps_the_directories_it_was_given(pulled: Pulled) -> None:
    with pulled.node.store.hold(pulled.image) as stack:
        alter(stack.layers_dir / stack.lowers[0] / MARK)
        await mended(pulled, registry=False)
        assert all((stack.layers_dir / name).is_dir() for name in stack.lowers)
    await pulled.node.store.sweep()
    assert not (stack.layers_dir / stack.lowers[0]).exists()


async def test_only_a_damaged_blob_is_downloaded(pulled: Pulled) -> None:
    alter(pulled.node.store.blobs.path(TOP.digest))
    alter(pulled.tree(1) / MARK)
    report = await mended(pulled, registry=True)
    assert {each.damage for each in report.checked.findings} >= {Damage.BLOB}
    assert pulled.registry.count("GET", f"/blobs/{TOP.digest}") == 1
    assert pulled.registry.count("GET", f"/blobs/{BASE.digest}") == 0


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("document", ["manifest", "config"])
async def test_a_document_comes_from_the_registry_and_the_layers_stay(
    pulled: Pulled, reaper: Reaper, document: str, restarted: bool
) -> None:
    digest = pulled.image.id if document == "config" else pulled.image.manifest_digests[0]
    alter(pulled.node.store.blobs.path(digest))
    before = pulled.node.store.layer_stack(pulled.image)
    if restarted:
        await reopened(pulled, reaper)
        assert pulled.node.store.find(pulled.image.id) is None
    await mended(pulled, registry=True)
    # Without its manifest, a new daemon does not know which layers the image had.
    lost = restarted and document == "manifest"
    assert pulled.registry.count("GET", f"/blobs/{TOP.digest}") == lost
    assert pulled.registry.count("GET", f"/blobs/{BASE.digest}") == 0
    if document == "config":
        assert pulled.node.store.layer_stack(pulled.image) == before


async def test_a_layer_that_was_missing_at_start_needs_no_registry(
    pulled: Pulled, reaper: Reaper
) -> None:
    pulled.tree(1).rename(pulled.node.root / "away")
    await reopened(pulled, reaper)
    assert pulled.node.store.find(pulled.image.id) is None
    await mended(pulled, registry=False)


async def test_a_pull_repairs_what_a_check_damaged_and_a_failed_repair_left(
    pulled: Pulled,
) -> None:
    alter(pulled.node.store.blobs.path(TOP.digest))
    report = await pulled.node.store.repair(pull=no_pull)
    assert {each.finding.damage for each in report.left} == {Damage.BLOB}
    assert "no registry was to be asked" in report.left[0].reason
    assert pulled.node.store.is_damaged(pulled.image)
    await pulled.node.puller.pull(pulled.image.repo_tags[0])
    assert not pulled.node.store.is_damaged(pulled.image)
    assert TOP.digest in pulled.node.store.blobs


async def test_what_no_registry_has_is_left_with_what_to_do(pulled: Pulled) -> None:
    alter(pulled.node.store.blobs.path(pulled.image.id))
    pulled.registry.faults.append(
        Answer(f"/manifests/{pulled.image.repo_digests[0][-71:]}", 99, status=404)
    )
    report = await pulled.node.store.repair([pulled.image.id], pull=pulled.node.puller.pull)
    [left] = report.left
    assert left.finding.damage is Damage.CONFIG
    assert "not found" in left.reason
    print("REPORT", report)
    assert report.repaired == ()


async def test_a_failing_disk_leaves_the_old_layer_and_its_record(
    pulled: Pulled, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(pulled.tree(1) / MARK)
    before = pulled.tree(1)

    def full(path: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cri_shim.image.layers.sync_file_system", full)
        report = await pulled.node.store.repair(pull=no_pull)
    assert "No space left" in report.left[0].reason
    assert pulled.tree(1) == before
    assert before.is_dir()
    assert json.loads(pulled.record(1).read_bytes())["name"] == before.name
    await mended(pulled, registry=False)


async def test_a_registry_that_drips_holds_up_no_check_and_no_collection(pulled: Pulled) -> None:
    store = pulled.node.store
    alter(store.blobs.path(TOP.digest))
    alter(pulled.tree(1) / MARK)
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def pull(name: str) -> Image:
        asked.set()
        await goes_on.wait()
        return await pulled.node.puller.pull(name)

    repairing = asyncio.create_task(store.repair(pull=pull))
    async with asyncio.timeout(20):
        await asked.wait()
        assert (await store.check()).images == 2
        assert (await store.collect()).images == ()
    assert not repairing.done()
    goes_on.set()
    assert (await repairing).left == ()
    assert (await store.check()).sound


async def test_an_image_that_is_removed_while_it_is_mended_stays_away(
    pulled: Pulled, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pulled.node.store
    alter(pulled.tree(1) / MARK)
    read_manifest = pulled.node.unpacker.read_manifest

    async def removed_meanwhile(*args: Any, **more: Any) -> Any:
        if store.find(pulled.image.id) is not None:
            await store.remove(pulled.image.id)
        return await read_manifest(*args, **more)

    monkeypatch.setattr(pulled.node.unpacker, "read_manifest", removed_meanwhile)
    report = await store.repair([pulled.image.id], pull=pulled.node.puller.pull)
    assert [left.reason for left in report.left] == ["its image was removed meanwhile"]
    assert store.images() == [pulled.other]


async def test_without_packed_layers_the_damaged_layer_alone_is_downloaded(
    node: Node, registry: FakeRegistry, reaper: Reaper
) -> None:
    await node.open(reaper=reaper, discard_blobs=True)
    registry.add("team/app", BASE, TOP, tag="1")
    registry.add("team/other", BASE, OTHER, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    other = await node.puller.pull(f"{registry.host}/team/other:1")
    registry.seen.clear()
    here = Pulled(node, registry, image, other)
    alter(here.tree(0) / MARK)
    await mended(here, registry=True)
    assert registry.count("GET", f"/blobs/{BASE.digest}") == 1
    assert registry.count("GET", f"/blobs/{TOP.digest}") == 0
    assert all(here.seals())
    assert not node.store.blobs.path(BASE.digest).exists()
