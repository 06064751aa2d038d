"""Checking, repairing, collecting and exporting on the real thing: layers of all kinds, overlays, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, ResourceExhaustedError, WrongStateError
from cri_shim.host.files import disk_usage
from cri_shim.host.mounts import mount_overlay, mount_tmpfs, unmount
from cri_shim.image.builtin import PAUSE_REFERENCE, pause_archive
from cri_shim.image.integrity.report import Damage
from cri_shim.image.store import ImageStore
from cri_shim.image.volume import open_sub_path
from tests.images import (
    device,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    oci_archive,
    opaque,
    stream,
    symlink,
    whiteout,
)
from tests.integration.image.scene import bring
from tests.rootfs import mounted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cri_shim.host.process import Reaper
    from cri_shim.image.model import Image

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
NAME = "r.example/team/app:1"
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
LOW = layer(
    directory("etc"),
    file("etc/passwd", b"root:x:0:0\n"),
    directory("tmp", 0o1777),
    directory("opq"),
    file("opq/old"),
    file("gone"),
    compression="gzip",
)
HIGH = layer(
    file("bin/tool", b"#!/bin/sh\n", 0o4755, uid=7, gid=8, xattrs={"security.capability": CAPABILITY}),
    hardlink("bin/same", "bin/tool", 0o4755, uid=7, gid=8),
    symlink("bin/link", "/etc/passwd"),
    device("null", 1, 3),
    fifo("pipe"),
    file("tmp/implied-dir/x", b"x"),
    whiteout("gone"),
    directory("opq", xattrs={"user.kind": b"o"}),
    opaque("opq"),
    file("big", b"b" * 3_000_000),
    compression="zstd",
)  # fmt: skip


async def no_pull(name: str) -> Image:
    raise CriShimError(f"{name}: there is no registry")


def top_of(store: ImageStore, image: Image) -> Path:
    stack = store.layer_stack(image)
    return stack.layers_dir / stack.lowers[0]


ALTERATIONS: dict[str, Callable[[Path], object]] = {
    "opaque mark": lambda top: os.removexattr(top / "opq", "trusted.overlay.opaque"),
    "whiteout": lambda top: (top / "gone").unlink(),
    "capability": lambda top: os.removexattr(top / "bin/tool", "security.capability"),
    "owner": lambda top: os.lchown(top / "bin/link", 1, 1),
    "device": lambda top: _other_device(top / "null"),
    "inherited mode": lambda top: (top / "tmp").chmod(0o777),
    "setuid": lambda top: (top / "bin/tool").chmod(0o755),
    "one byte": lambda top: _one_byte(top / "big"),
    "redirect": lambda top: os.setxattr(top / "opq", "trusted.overlay.redirect", b"/etc"),
}


def _other_device(path: Path) -> None:
    found = path.lstat()
    path.unlink()
    os.mknod(path, found.st_mode, os.makedev(1, 5))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def _one_byte(path: Path) -> None:
    found = path.stat()
    with path.open("r+b") as data:
        data.seek(1_234_567)
        data.write(b"c")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


async def test_every_alteration_is_found_and_mended_under_a_running_overlay(
    tmp_path: Path, reaper: Reaper
) -> None:
    in_use: set[str] = set()
    store = await ImageStore.open(
        tmp_path / "images", tmp_path / "layers", reaper, in_use=lambda: in_use
    )
    image = await bring(store, oci_archive(LOW, HIGH, name=NAME))
    # Unpacked a second time, apart, it has the same seal: with each kind of entry.
    assert (await store.check()).findings == ()
    stack = store.layer_stack(image)
    in_use |= set(stack.lowers)
    work = tmp_path / "mounted"
    work.mkdir()
    with mounted(stack, work) as target:
        for what, alter in ALTERATIONS.items():
            alter(top_of(store, image))
            report = await store.repair(pull=no_pull)
            found = [(each.damage, each.object) for each in report.repaired]
            assert found == [(Damage.LAYER_ALTERED, image.chain[1])], what
            assert report.left == ()
        assert (await store.check()).findings == ()
        assert (target / "etc/passwd").read_bytes() == b"root:x:0:0\n"
        assert (target / "bin/same").read_bytes() == b"#!/bin/sh\n"
        assert all((stack.layers_dir / name).is_dir() for name in stack.lowers)
        assert len(os.listdir(stack.layers_dir)) == 1 + 2 + 1  # .ingest, two in use, one better
    in_use.clear()
    await store.sweep()
    assert sorted(os.listdir(stack.layers_dir)) == sorted(
        [".ingest", *store.layer_stack(image).lowers]
    )
    await store.close()


async def test_a_damaged_pause_image_is_made_again(
    store: ImageStore, tmp_path: Path, reaper: Reaper
) -> None:
    [pause] = await store.import_archive(pause_archive(), PAUSE_REFERENCE)
    (tmp_path / "images/blobs/sha256" / pause.id[7:]).write_bytes(b"{}")
    again = await ImageStore.open(tmp_path / "images", tmp_path / "layers", reaper)
    assert list(again.images()) == []
    report = await again.repair(pull=no_pull)
    assert [each.damage for each in report.repaired] == [Damage.CONFIG]
    assert [image.id for image in again.images()] == [pause.id]
    await again.close()


async def test_without_packed_layers_an_image_is_checked_but_not_exported(
    tmp_path: Path, reaper: Reaper
) -> None:
    places = tmp_path / "images", tmp_path / "layers"
    store = await ImageStore.open(*places, reaper, discard_blobs=True)
    image = await bring(store, oci_archive(LOW, HIGH, name=NAME))
    await bring(store, oci_archive(LOW, name="r.example/low:1"))
    await store.close()
    store = await ImageStore.open(*places, reaper, discard_blobs=True)
    assert (await store.check()).findings == ()
    assert len(os.listdir(tmp_path / "images/blobs/sha256")) == 4
    with pytest.raises(WrongStateError, match="discard_blobs"):
        async with store.export([image.id]):
            pass
    _one_byte(top_of(store, image) / "big")
    report = await store.repair(pull=no_pull)
    assert [each.finding.damage for each in report.left] == [Damage.LAYER_ALTERED]
    # Its owner has the archive: an import repairs it as well.
    await bring(store, oci_archive(LOW, HIGH, name=NAME))
    assert (await store.check()).findings == ()
    await store.close()


async def test_an_exported_archive_brings_the_same_images_to_another_node(
    store: ImageStore, tmp_path: Path, reaper: Reaper
) -> None:
    one = await bring(store, oci_archive(LOW, HIGH, name=NAME, user="7"))
    two = await bring(store, oci_archive(LOW, name="r.example/low:1"))
    async with store.export([NAME, two.id]) as archive:
        data = b"".join([chunk async for chunk in archive.chunks()])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) == 3 + 2 * 2 + 2
    other = await ImageStore.open(tmp_path / "b/images", tmp_path / "b/layers", reaper)
    images = await other.import_archive(stream(data))
    assert [(i.id, i.repo_tags, i.repo_digests) for i in images] == [
        (i.id, i.repo_tags, i.repo_digests) for i in (one, two)
    ]
    await other.close()


async def test_what_is_counted_is_what_the_disk_has(store: ImageStore, tmp_path: Path) -> None:
    image = await bring(store, oci_archive(LOW, HIGH, name=NAME))
    usage = await store.fs_usage()
    layers = [disk_usage(path) for path in (tmp_path / "layers").iterdir() if path.name[0] != "."]
    blobs = list((tmp_path / "images/blobs/sha256").iterdir())
    real = sum(each.used_bytes for each in layers) + sum(b.stat().st_blocks * 512 for b in blobs)
    assert abs(usage.used_bytes - real) <= 16 << 10
    # A layer's own directory is an inode, too, and is not counted.
    assert usage.inodes == sum(each.inodes - 1 for each in layers) + len(blobs)
    assert 0 < image.size < usage.used_bytes


async def test_an_image_volume_shows_the_image_and_nothing_else(
    store: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    target = tmp_path / "volume"
    target.mkdir()
    one = layer(
        file("models/weights", b"w"),
        symlink("out", str(tmp_path / "secret")),
        symlink("models/root", "/"),
        whiteout("models/hidden"),
    )
    for layers, sub_path, shown in (
        ([one], "models/root/models", {"weights", "root"}),
        ([LOW, one], "", {"etc", "tmp", "opq", "gone", "models", "out"}),
        ([], "", set()),
    ):
        image = await bring(store, oci_archive(*layers, name=NAME))
        async with store.volume(image.id, sub_path) as volume:
            mount_overlay(
                target, layers_dir=volume.layers_dir, lowers=volume.lowers, upper=None, work=None
            )
            try:
                fd = open_sub_path(target, volume)
                try:
                    # The kernel may list what is whited out, but nobody can reach it.
                    there = f"/proc/self/fd/{fd}"
                    names = {n for n in os.listdir(there) if os.path.lexists(f"{there}/{n}")}
                    assert names == shown
                    with pytest.raises(OSError, match="Read-only"):
                        os.mkdir(f"/proc/self/fd/{fd}/new")
                finally:
                    os.close(fd)
            finally:
                unmount(target)


async def test_a_full_disk_during_a_repair_or_a_collection_spoils_nothing(
    tmp_path: Path, reaper: Reaper
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount_tmpfs(place, size_bytes=10 << 20)
    try:
        store = await ImageStore.open(place / "images", place / "layers", reaper)
        image = await bring(store, oci_archive(LOW, HIGH, name=NAME))
        await store.check()
        _one_byte(top_of(store, image) / "big")
        filler = place / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(10 << 20))
        before = set(place.rglob("*"))
        report = await store.repair(pull=no_pull)
        assert "free some space" in report.left[0].reason
        assert set(place.rglob("*")) == before
        with pytest.raises(ResourceExhaustedError):
            await store.remove(NAME)
        assert store.find(NAME) == image
        filler.unlink()
        assert (await store.repair(pull=no_pull)).left == ()
        assert (await store.check()).findings == ()
        await store.close()
    finally:
        unmount(place)


async def test_a_store_in_use_stays_sound_while_all_happens_at_once(
    tmp_path: Path, reaper: Reaper
) -> None:
    store = await ImageStore.open(tmp_path / "images", tmp_path / "layers", reaper)
    archives = {
        f"r.example/app:{n}": oci_archive(
            LOW, layer(file("n", b"%d" % n)), name=f"r.example/app:{n}"
        )
        for n in range(4)
    }

    async def churn(name: str) -> None:
        for _ in range(4):
            await bring(store, archives[name])
            await store.remove(name)
        await bring(store, archives[name])

    async def look_after() -> None:
        for _ in range(3):
            assert (await store.check()).sound
            await store.collect(untagged=True)

    await asyncio.gather(look_after(), *map(churn, archives))
    assert len(store.images()) == len(archives)
    assert (await store.check()).findings == ()
    await store.close()
