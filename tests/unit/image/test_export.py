"""An exported archive comes in again as the same images, and is refused or broken off rather than wrong."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CorruptStateError, NotFoundError, WrongStateError
from cri_shim.image.manifest import digest_of
from tests.fakes.clock import until
from tests.fakes.registry import Corrupt, Stall
from tests.images import file, layer
from tests.unit.image.integrity.test_check import alter

if TYPE_CHECKING:
    from cri_shim.host.process import Reaper
    from tests.fakes.registry import FakeRegistry
    from tests.unit.image.conftest import Node

pytestmark = pytest.mark.asyncio

BASE = layer(file("base", b"b" * 100_000), compression="gzip")
TOP = layer(file("top", b"t" * 3), compression="gzip")
PLAIN = layer(file("plain", b"p"))


async def exported(node: Node, *names: str) -> bytes:
    async with node.store.export(names) as archive:
        data = b"".join([chunk async for chunk in archive.chunks()])
        assert len(data) == archive.total_bytes
    return data


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar}  # type: ignore[union-attr]


async def test_an_archive_has_every_blob_once_and_both_lists(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/one", BASE, PLAIN, tag="1")
    registry.add("team/two", BASE, tag="2")
    one = await node.puller.pull(f"{registry.host}/team/one:1")
    two = await node.puller.pull(f"{registry.host}/team/two:2")
    data = await exported(node, one.repo_tags[0], two.id, one.id)
    assert len(data) % 10240 == 0
    found = members(data)
    blobs = {name: content for name, content in found.items() if name.startswith("blobs/")}
    assert all(name == "blobs/" + digest_of(c).replace(":", "/") for name, c in blobs.items())
    assert len(blobs) == 2 + 2 + 2
    index = json.loads(found["index.json"])
    names = [entry["annotations"]["io.containerd.image.name"] for entry in index["manifests"]]
    assert names == [one.repo_tags[0], two.repo_tags[0]]
    docker = json.loads(found["manifest.json"])
    assert [entry["RepoTags"] for entry in docker] == [list(one.repo_tags), list(two.repo_tags)]
    assert docker[1]["Layers"] == ["blobs/" + BASE.digest.replace(":", "/")]
    assert node.leftovers() == []


async def test_what_is_removed_meanwhile_is_sent_all_the_same(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/one", BASE, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/one:1")
    whole = await exported(node, image.id)
    async with node.store.export([image.id]) as archive:
        await node.store.remove(image.id)
        assert b"".join([chunk async for chunk in archive.chunks()]) == whole
    assert node.leftovers() == []


async def test_an_image_without_a_tag_is_sent_without_a_name(
    node: Node, registry: FakeRegistry
) -> None:
    pushed = registry.add("team/one", PLAIN)
    await node.puller.pull(f"{registry.host}/team/one@{pushed.digest}")
    index = json.loads(members(await exported(node, pushed.config_digest))["index.json"])
    assert [entry.get("annotations", {}) for entry in index["manifests"]] == [{}]


async def test_what_is_not_kept_is_said_before_anything_is_sent(
    node: Node, registry: FakeRegistry
) -> None:
    await node.open(discard_blobs=False)
    registry.add("team/one", BASE, TOP, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/one:1")
    node.store.blobs.forget(BASE.digest)
    with pytest.raises(WrongStateError, match=r"1 of its blobs .*discard_blobs"):
        await exported(node, image.id)
    with pytest.raises(NotFoundError):
        await exported(node, "absent:1")
    assert node.leftovers() == []


async def test_one_layer_packed_in_two_ways_is_kept_in_both(
    node: Node, registry: FakeRegistry
) -> None:
    entries = [file("base", b"b" * 100_000)]
    packed = {how: layer(*entries, compression=how) for how in ("gzip", "zstd")}
    for how, made in packed.items():
        registry.add(f"team/{how}", made, TOP, tag="1", user=how)
    names = [f"{registry.host}/team/{how}:1" for how in packed]
    first, second = [await node.puller.pull(name) for name in names]
    for how, image in zip(packed, (first, second), strict=True):
        assert "blobs/" + packed[how].digest.replace(":", "/") in members(
            await exported(node, image.id)
        )
    assert first.chain == second.chain  # unpacked it is there once
    assert [registry.count("GET", made.digest) for made in (*packed.values(), TOP)] == [1, 1, 1]
    assert node.leftovers() == []


async def test_of_two_pulls_at_once_each_keeps_its_own_packing(
    node: Node, registry: FakeRegistry
) -> None:
    entries = [file("base", b"b" * 100_000)]
    for how in ("gzip", "zstd"):
        registry.add(f"team/{how}", layer(*entries, compression=how), tag="1", user=how)
    pulls = [node.puller.pull(f"{registry.host}/team/{how}:1") for how in ("gzip", "zstd")]
    for image in await asyncio.gather(*pulls):
        await exported(node, image.id)


async def test_layer_that_an_image_has_twice_comes_from_another_pull_that_is_under_way(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/one", PLAIN, PLAIN, BASE, tag="1", user="one")
    registry.add("team/two", PLAIN, PLAIN, tag="1", user="two")
    registry.faults.append(Stall(f"/blobs/{BASE.digest}"))
    one = asyncio.create_task(node.puller.pull(f"{registry.host}/team/one:1", abandon=True))
    await until(lambda: registry.count("GET", PLAIN.digest))
    two = await node.puller.pull(f"{registry.host}/team/two:1")
    assert not one.done()
    await exported(node, two.id)
    assert registry.count("GET", PLAIN.digest) == 1
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_another_pull_brings_the_packed_layers_that_are_missing(
    node: Node, registry: FakeRegistry
) -> None:
    registry.add("team/one", BASE, TOP, tag="1")
    name = f"{registry.host}/team/one:1"
    image = await node.puller.pull(name)
    for each in (BASE, TOP):
        node.store.blobs.forget(each.digest)
    with pytest.raises(WrongStateError, match=r"2 of its blobs .* pull or import"):
        await exported(node, image.id)
    registry.faults.append(Corrupt(f"/blobs/{BASE.digest}", at=50))
    await node.puller.pull(name)
    await exported(node, image.id)
    await node.puller.pull(name)
    assert [registry.count("GET", each.digest) for each in (BASE, TOP)] == [3, 2]
    assert len(node.unpacker.streamed) == 2  # unpacked they were here all the time
    assert node.leftovers() == []


async def test_what_is_not_to_be_kept_is_not_fetched(
    node: Node, registry: FakeRegistry, reaper: Reaper
) -> None:
    await node.open(reaper=reaper, discard_blobs=True)
    registry.add("team/one", BASE, tag="1")
    for _ in range(2):
        await node.puller.pull(f"{registry.host}/team/one:1")
    assert registry.count("GET", BASE.digest) == 1


async def test_a_damaged_blob_breaks_the_archive_off(node: Node, registry: FakeRegistry) -> None:
    registry.add("team/one", BASE, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/one:1")
    path = node.store.blobs.path(BASE.digest)
    alter(path)
    with pytest.raises(CorruptStateError, match="the export stopped"):
        await exported(node, image.id)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptStateError, match="the export stopped"):
        await exported(node, image.id)
