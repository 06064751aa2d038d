"""A collection takes what nobody needs, says what that freed, and spares what is pinned or used."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import ResourceExhaustedError
from cri_shim.image.index import load_index, save_index
from cri_shim.image.integrity.report import Collected
from cri_shim.image.pins import Pins
from tests.images import file, layer
from tests.unit.image.integrity.test_check import alter

if TYPE_CHECKING:
    from cri_shim.host.process import Reaper
    from cri_shim.image.model import Image
    from tests.fakes.registry import FakeRegistry
    from tests.unit.image.conftest import Node

pytestmark = pytest.mark.asyncio

BASE = layer(file("base", b"b" * 1000), compression="gzip")
OLD = layer(file("old", b"o" * 10_000), compression="gzip")
NEW = layer(file("new", b"n"), compression="gzip")
NOTHING = Collected((), 0, 0, 0, 0, 0)


async def moved_tag(node: Node, registry: FakeRegistry) -> tuple[Image, Image]:
    """An image whose tag has moved to another one."""
    registry.add("team/app", BASE, OLD, tag="1")
    old = await node.puller.pull(f"{registry.host}/team/app:1")
    registry.add("team/app", BASE, NEW, tag="1")
    return old, await node.puller.pull(f"{registry.host}/team/app:1")


async def unnamed(node: Node, registry: FakeRegistry) -> tuple[Image, Image]:
    """An image without any name, and another one."""
    old, new = await moved_tag(node, registry)
    index = load_index(node.root / "images")
    del index.names[old.repo_digests[0]]
    save_index(node.root / "images", index)
    await node.open()
    found = node.store.find(old.id)
    assert found is not None
    return found, new


async def test_where_everything_is_needed_nothing_goes(node: Node, registry: FakeRegistry) -> None:
    assert await node.store.collect() == NOTHING
    await moved_tag(node, registry)
    assert await node.store.collect() == NOTHING


async def test_an_image_without_a_name_goes_and_what_that_frees_is_told(
    node: Node, registry: FakeRegistry
) -> None:
    old, new = await unnamed(node, registry)
    before = await node.store.fs_usage()
    expected = await node.store.collect(dry_run=True)
    assert node.store.find(old.id) is not None
    assert await node.store.fs_usage() == before
    assert await node.store.collect() == expected
    after = await node.store.fs_usage()
    assert (expected.images, expected.layers, expected.blobs) == ((old.id,), 1, 3)
    assert expected.freed_bytes == before.used_bytes - after.used_bytes > 0
    assert expected.freed_inodes == before.inodes - after.inodes
    assert list(node.store.images()) == [new]
    await node.open()
    assert [image.id for image in node.store.images()] == [new.id]
    assert node.leftovers() == []


async def test_an_image_without_a_tag_goes_only_if_that_is_wanted(
    node: Node, registry: FakeRegistry
) -> None:
    old, new = await moved_tag(node, registry)
    assert (await node.store.collect()).images == ()
    assert (await node.store.collect(untagged=True)).images == (old.repo_digests[0],)
    assert list(node.store.images()) == [new]


async def test_what_a_container_stands_on_or_the_configuration_pins_stays(
    node: Node, registry: FakeRegistry
) -> None:
    old, _ = await moved_tag(node, registry)
    node.in_use |= set(node.store.layer_stack(old).lowers)
    assert await node.store.collect(untagged=True) == NOTHING
    node.in_use.clear()
    node.store.pin(Pins([f"{registry.host}/team/*"]))
    assert await node.store.collect(untagged=True) == NOTHING
    node.store.pin(Pins())
    assert (await node.store.collect(untagged=True)).images == (old.repo_digests[0],)


async def test_leftovers_go_but_nothing_that_somebody_works_on(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/app", BASE, tag="1")
    await node.puller.pull(f"{registry.host}/team/app:1")
    for place in ("images/.ingest/spool-77", "layers/.ingest/trash-77"):
        (node.root / place / "deep").mkdir(parents=True)
        (node.root / place / "deep/file").write_bytes(b"x" * 5000)
    async with node.store.spool("working") as _:
        live = list((node.root / "images/.ingest").iterdir())
        collected = await node.store.collect(dry_run=True)
        assert collected == await node.store.collect()
        assert len(live) == 2
        assert len(list((node.root / "images/.ingest").iterdir())) == 1
    assert replace(collected, freed_bytes=0, freed_inodes=0) == replace(NOTHING, leftovers=2)
    assert collected.freed_bytes >= 2 * 5000
    assert collected.freed_inodes == 6
    assert node.leftovers() == []


async def test_a_damaged_image_that_was_left_out_goes(node: Node, registry: FakeRegistry) -> None:
    old, new = await moved_tag(node, registry)
    node.store.blobs.path(old.id).unlink()
    await node.open(pinned=[f"{registry.host}/team/app*"])
    await node.store.sweep()  # which layers it had was in the document that is gone
    assert await node.store.collect() == NOTHING
    node.store.pin(Pins())
    assert (await node.store.collect()).images == (old.repo_digests[0],)
    assert [image.id for image in node.store.images()] == [new.id]
    assert OLD.digest not in node.store.blobs


async def test_a_full_disk_leaves_everything(
    node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = await unnamed(node, registry)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "where")

    monkeypatch.setattr("cri_shim.image.index.write_atomic", full)
    with pytest.raises(ResourceExhaustedError):
        await node.store.collect()
    assert list(node.store.images()) == [old, new]
    assert OLD.digest in node.store.blobs


async def test_packed_layers_from_before_go_once_their_layers_are_sealed_and_sound(
    node: Node, registry: FakeRegistry, reaper: Reaper
) -> None:
    registry.add("team/app", BASE, OLD, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    await node.open(reaper=reaper, discard_blobs=True)
    await node.store.sweep()
    assert BASE.digest in node.store.blobs, "a sweep doesn't know whether they are still needed"
    stack = node.store.layer_stack(image)
    alter(stack.layers_dir / stack.lowers[0] / "unpacked")
    collected = await node.store.collect()
    assert collected.blobs == 1
    assert BASE.digest not in node.store.blobs
    assert OLD.digest in node.store.blobs, "it can still repair the layer"
    assert not (await node.store.check()).sound
