"""The order in which changes reach the disk, and what a new daemon makes of what it finds there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, NotFoundError, ResourceExhaustedError
from cri_shim.host import durable
from cri_shim.image.index import load_index
from tests.images import file, layer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.registry import FakeRegistry
    from tests.unit.image.conftest import Node

pytestmark = pytest.mark.asyncio

BASE = layer(file("base", b"b" * 1000), compression="gzip")
TOP = layer(file("top", b"t"), compression="gzip")


class DiskLog:
    """What was made durable, and what was renamed or removed, in its order; paths below `root`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.events: list[str] = []
        real_rename, real_unlink = os.rename, os.unlink
        real_sync, real_fsync = durable.libc.syncfs, os.fsync

        def rename(source: object, target: object, **fds: int) -> None:
            real_rename(source, target, **fds)  # type: ignore[arg-type]
            self.note("rename", str(target))

        def unlink(path: object, **fds: int) -> None:
            real_unlink(path, **fds)  # type: ignore[arg-type]
            if not fds:
                self.note("unlink", str(path))

        def syncfs(fd: int) -> int:
            self.note("syncfs", os.readlink(f"/proc/self/fd/{fd}"))
            return int(real_sync(fd))

        def fsync(fd: int) -> None:
            self.note("fsync", os.readlink(f"/proc/self/fd/{fd}"))
            real_fsync(fd)

        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(os, "unlink", unlink)
        monkeypatch.setattr(durable, "libc", type("Libc", (), {"syncfs": staticmethod(syncfs)}))
        monkeypatch.setattr(os, "fsync", fsync)

    def note(self, what: str, path: str) -> None:
        inside = path.removeprefix(f"{self.root}/")
        parts = inside.split("/")
        if parts[:2] == ["images", "blobs"]:
            inside = "BLOB"
        elif parts[:2] == ["images", "layers"]:
            inside = "RECORD"
        elif parts[:2] == ["images", "described"]:
            inside = "IMAGE RECORD"
        elif parts[0] == "layers" and len(parts) > 1:
            inside = "TRASH" if parts[1] == ".ingest" else "LAYER"
        elif parts[-1].startswith("index.json."):
            inside = "images/index.json.tmp"
        elif ".ingest" in parts or not path.startswith(str(self.root)):
            return
        event = f"{what} {inside}"
        if not self.events or self.events[-1] != event:
            self.events.append(event)


async def test_an_image_comes_in_the_order_that_no_power_cut_can_turn_into_a_lie(
    node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add("team/app", BASE, TOP, tag="1")
    disk = DiskLog(node.root, monkeypatch)
    await node.puller.pull(f"{registry.host}/team/app:1")
    disk.events.remove("rename images/oci-layout")
    assert disk.events == [
        "rename LAYER",
        "syncfs layers",
        "rename RECORD",
        "rename BLOB",
        "rename IMAGE RECORD",
        "syncfs images",
        "fsync images/index.json.tmp",
        "rename images/index.json",
        "fsync images",
    ]


async def test_an_image_goes_from_the_list_before_anything_of_it_is_touched(
    node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add("team/app", BASE, TOP, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    disk = DiskLog(node.root, monkeypatch)
    await node.store.remove(image.id)
    assert disk.events[:5] == [
        "fsync images/index.json.tmp",
        "rename images/index.json",
        "fsync images",
        "unlink IMAGE RECORD",
        "unlink RECORD",
    ]
    assert set(disk.events[5:]) == {"rename TRASH", "unlink BLOB"}


@pytest.mark.parametrize("step", ["syncfs", "record", "blob", "index"])
async def test_a_disk_that_fails_at_any_step_leaves_the_old_list(
    node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    registry.add("team/kept", BASE, tag="1")
    registry.add("team/app", BASE, TOP, tag="1")
    kept = await node.puller.pull(f"{registry.host}/team/kept:1")
    usage = await node.store.fs_usage()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "where")

    target = {
        "syncfs": "cri_shim.image.store_state.sync_file_system",
        "record": "cri_shim.image.layer_records.write_atomic",
        "blob": "cri_shim.image.blobs.write_atomic",
        "index": "cri_shim.image.index.write_atomic",
    }[step]
    with monkeypatch.context() as patched:
        patched.setattr(target, full)
        with pytest.raises(ResourceExhaustedError, match="free some space"):
            await node.puller.pull(f"{registry.host}/team/app:1")
    assert list(node.store.images()) == [kept]
    assert await node.store.fs_usage() == usage
    assert node.leftovers() == []
    await node.open()
    assert [image.id for image in node.store.images()] == [kept.id]
    assert len((await node.puller.pull(f"{registry.host}/team/app:1")).chain) == 2


async def test_a_read_only_disk_is_told_and_takes_no_image_away(
    node: Node, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add("team/app", BASE, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", "where")

    with monkeypatch.context() as patched:
        patched.setattr("cri_shim.image.index.write_atomic", read_only)
        with pytest.raises(CriShimError, match="Read-only file system"):
            await node.store.remove(image.id)
    assert node.store.find(image.id) is image
    assert (
        node.store.layer_stack(image).layers_dir / node.store.layer_stack(image).lowers[0]
    ).is_dir()


# What was damaged at start


async def damaged(node: Node, registry: FakeRegistry) -> str:
    """Pull an image, lose its configuration, start anew; the image's name."""
    registry.add("team/app", BASE, TOP, tag="1")
    image = await node.puller.pull(f"{registry.host}/team/app:1")
    node.store.blobs.path(image.id).unlink()
    registry.seen.clear()
    await node.open()
    return f"{registry.host}/team/app:1"


async def test_a_damaged_image_keeps_what_is_left_of_it_until_it_is_pulled_again(
    node: Node, registry: FakeRegistry
) -> None:
    name = await damaged(node, registry)
    assert list(node.store.images()) == []
    await node.store.sweep()
    await node.open()  # neither a sweep nor another start forgets it
    await node.store.sweep()
    image = await node.puller.pull(name)
    assert image.repo_tags == (name,)
    assert registry.count("GET", f"/blobs/{TOP.digest}") == 0
    await node.open()
    assert node.store.find(name) == image


async def test_a_damaged_image_goes_when_its_name_is_removed_or_given_away(
    node: Node, registry: FakeRegistry
) -> None:
    name = await damaged(node, registry)
    with pytest.raises(NotFoundError):
        await node.store.remove(name)
    await node.store.sweep()
    assert node.leftovers() == []
    name = await damaged(node, registry)
    digest = load_index(node.root / "images").names[name]
    registry.add("team/app", BASE, tag="1")
    await node.puller.pull(name)
    with pytest.raises(NotFoundError):
        await node.store.remove(f"{registry.host}/team/app@{digest}")
    await node.store.sweep()
    assert TOP.digest not in node.store.blobs
