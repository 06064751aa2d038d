"""A check finds each kind of damage, names who needs what is damaged, and changes nothing but seals."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import NotFoundError
from cri_shim.image.integrity.report import CheckProgress, Damage
from tests.fakes.unpacker import MARK
from tests.images import file, layer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cri_shim.host.process import Reaper
    from cri_shim.image.model import Image
    from tests.fakes.registry import FakeRegistry
    from tests.unit.image.conftest import Node

pytestmark = pytest.mark.asyncio

BASE = layer(file("base", b"b" * 10_000), compression="gzip")
TOP = layer(file("top", b"t" * 1000), compression="gzip")
OTHER = layer(file("other", b"o"))


class Pulled:
    """A node with two images that share their lowest layer."""

    def __init__(self, node: Node, registry: FakeRegistry, image: Image, other: Image) -> None:
        self.node = node
        self.registry = registry
        self.image = image
        self.other = other

    def tree(self, number: int) -> Path:
        """Where the layer of that number, lowest first, of `image` is."""
        stack = self.node.store.layer_stack(self.image)
        return stack.layers_dir / stack.lowers[::-1][number]

    def record(self, number: int) -> Path:
        return self.node.root / f"images/layers/{self.image.chain[number][7:]}.json"

    def seals(self) -> list[str]:
        records = [self.record(number) for number in range(len(self.image.chain))]
        return [json.loads(path.read_bytes())["seal"] for path in records]

    async def found(self, *names: str) -> list[tuple[Damage, str]]:
        report = await self.node.store.check(names)
        return [(finding.damage, finding.object) for finding in report.findings]


@pytest_asyncio.fixture
async def pulled(node: Node, registry: FakeRegistry, reaper: Reaper) -> AsyncIterator[Pulled]:
    await node.open(reaper=reaper)
    registry.add("team/app", BASE, TOP, tag="1")
    registry.add("team/other", BASE, OTHER, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    other = await node.puller.pull(f"{registry.host}/team/other:1")
    yield Pulled(node, registry, image, other)
    assert node.leftovers() == []


def alter(path: Path) -> None:
    """Change one byte and nothing that a look at names, sizes and times would notice."""
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_what_is_sound_is_found_so_and_gets_its_seals(pulled: Pulled) -> None:
    assert pulled.seals() == ["", ""]
    told: list[CheckProgress] = []
    report = await pulled.node.store.check(progress=told.append)
    assert report.sound
    assert report.findings == ()
    assert (report.images, report.layers, report.blobs) == (2, 3, 7)
    assert report.checked_bytes > len(BASE.blob) + len(TOP.blob)
    assert {progress.what for progress in told} >= {
        f"blob {BASE.digest}",
        f"layer {pulled.image.chain[1]}",
    }
    assert all(pulled.seals())
    unpacked = len(pulled.node.unpacker.from_files)
    assert (await pulled.node.store.check()).sound
    assert len(pulled.node.unpacker.from_files) == unpacked, "a sealed layer is only read"


@pytest.mark.parametrize("sealed", [False, True])
async def test_an_altered_layer_is_found_with_all_its_images(pulled: Pulled, sealed: bool) -> None:
    if sealed:
        await pulled.node.store.check()
    alter(pulled.tree(0) / MARK)
    [finding] = (await pulled.node.store.check()).findings
    assert (finding.damage, finding.object) == (Damage.LAYER_ALTERED, pulled.image.chain[0])
    assert set(pulled.image.repo_tags + pulled.other.repo_tags) <= set(finding.images)
    assert "differs from what was unpacked" in finding.detail
    assert await pulled.found(pulled.other.id) == [(Damage.LAYER_ALTERED, pulled.image.chain[0])]


async def test_a_layer_without_its_directory_is_missing(pulled: Pulled) -> None:
    pulled.tree(1).rename(pulled.node.root / "away")
    assert await pulled.found() == [(Damage.LAYER_MISSING, pulled.image.chain[1])]
    assert await pulled.found(pulled.other.id) == []


async def test_a_blob_with_other_bytes_is_found_and_proves_nothing(pulled: Pulled) -> None:
    alter(pulled.node.store.blobs.path(TOP.digest))
    report = await pulled.node.store.check([pulled.image.id])
    assert [(each.damage, each.object) for each in report.findings] == [
        (Damage.BLOB, TOP.digest),
        (Damage.UNVERIFIED, pulled.image.chain[1]),
    ]
    assert not report.sound


async def test_a_packed_layer_that_is_not_kept_is_no_damage(pulled: Pulled) -> None:
    await pulled.node.store.check()
    pulled.node.store.blobs.forget(TOP.digest)
    report = await pulled.node.store.check()
    assert report.sound
    assert report.findings == ()


async def test_what_nothing_proves_is_said_and_is_no_damage(pulled: Pulled) -> None:
    pulled.node.store.blobs.forget(TOP.digest)
    report = await pulled.node.store.check()
    assert report.sound
    [finding] = report.findings
    assert finding.damage is Damage.UNVERIFIED
    assert "no packed layer" in finding.detail


async def test_damaged_documents_are_found_while_the_daemon_runs(pulled: Pulled) -> None:
    blobs = pulled.node.store.blobs
    alter(blobs.path(pulled.image.id))
    blobs.path(pulled.other.manifest_digests[0]).unlink()
    assert await pulled.found() == [
        (Damage.CONFIG, pulled.image.id),
        (Damage.MANIFEST, pulled.other.manifest_digests[0]),
    ]


@pytest.mark.parametrize("damage", ["manifest", "config", "layer"])
async def test_an_image_that_was_left_out_at_start_is_found(
    pulled: Pulled, reaper: Reaper, damage: str
) -> None:
    node, image = pulled.node, pulled.image
    match damage:
        case "manifest":
            expected = (Damage.MANIFEST, image.manifest_digests[0])
            node.store.blobs.path(expected[1]).write_bytes(b"{}")
        case "config":
            expected = (Damage.CONFIG, image.id)
            node.store.blobs.path(expected[1]).unlink()
        case _:
            expected = (Damage.LAYER_MISSING, image.chain[1])
            pulled.tree(1).rename(node.root / "away")
    await node.open(reaper=reaper)
    assert [each.id for each in node.store.images()] == [pulled.other.id]
    await node.store.sweep()
    assert await pulled.found() == [expected]
    assert await pulled.found(image.repo_tags[0]) == [expected]
    [finding] = (await node.store.check()).findings
    assert image.repo_tags[0] in finding.images


async def test_images_are_checked_by_name_and_unknown_ones_are_refused(pulled: Pulled) -> None:
    report = await pulled.node.store.check([pulled.other.repo_tags[0], pulled.other.id])
    assert (report.images, report.layers) == (1, 2)
    with pytest.raises(NotFoundError):
        await pulled.node.store.check(["absent:1"])


async def test_a_cancelled_check_leaves_nothing_behind(pulled: Pulled, reaper: Reaper) -> None:
    started = asyncio.Event()
    checking = asyncio.create_task(pulled.node.store.check(progress=lambda _: started.set()))
    await started.wait()
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert not reaper.children
    assert (await pulled.node.store.check()).sound


async def test_an_image_that_goes_while_it_is_checked_disturbs_nobody(pulled: Pulled) -> None:
    removed = asyncio.Event()

    def remove(_: CheckProgress) -> None:
        if not removed.is_set():
            removed.set()
            removing.append(asyncio.create_task(pulled.node.store.remove(pulled.image.id)))

    removing: list[asyncio.Task[Image]] = []
    report = await pulled.node.store.check(progress=remove)
    await removing[0]
    assert report.sound
    await pulled.node.store.sweep()


async def test_without_packed_layers_the_seal_is_made_when_the_image_comes(
    node: Node, registry: FakeRegistry, reaper: Reaper
) -> None:
    await node.open(reaper=reaper, discard_blobs=True)
    registry.add("team/app", BASE, TOP, tag="1")
    registry.add("team/other", BASE, OTHER, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    other = await node.puller.pull(f"{registry.host}/team/other:1")
    here = Pulled(node, registry, image, other)
    assert BASE.digest not in node.store.blobs
    assert all(here.seals())
    assert (await node.store.check()).findings == ()
    await node.open(reaper=reaper, discard_blobs=True)
    assert (await node.store.check()).findings == ()
    alter(here.tree(1) / MARK)
    assert await here.found() == [(Damage.LAYER_ALTERED, image.chain[1])]
