"""The image store on a real disk: what comes, what goes, what is left after anything goes wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import stat
from typing import TYPE_CHECKING

import pytest
import zstandard

from cri_shim.errors import (
    BadArchiveError,
    BadImageReferenceError,
    CriShimError,
    NotFoundError,
    ResourceExhaustedError,
)
from cri_shim.host.mounts import mount_tmpfs, unmount
from cri_shim.image.builtin import PAUSE_REFERENCE, busybox_archive, pause_archive
from cri_shim.image.manifest import digest_of
from cri_shim.image.model import Image, ImportProgress
from cri_shim.image.store import ImageStore
from tests.images import (
    directory,
    docker_archive,
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
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cri_shim.host.process import Reaper

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
BASE = layer(directory("etc"), file("etc/os", b"test\n"), compression="gzip")
APP = layer(file("app", b"#!/bin/sh\n", 0o755), compression="zstd")
OTHER = layer(file("other", b"x"))
NAME = "r.example/team/app:1"


def files_below(*roots: Path) -> set[str]:
    return {str(path) for root in roots for path in root.rglob("*")}


def dirs_of(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "images", tmp_path / "layers"


async def reopened(store: ImageStore, tmp_path: Path, reaper: Reaper) -> ImageStore:
    await store.close()
    return await ImageStore.open(*dirs_of(tmp_path), reaper)


# What comes


async def test_an_imported_image_is_listed_found_and_there_after_a_restart(
    store: ImageStore, tmp_path: Path, reaper: Reaper
) -> None:
    image = await bring(store, oci_archive(BASE, APP, name=NAME, cmd=["/app"], user="7"))
    assert image.repo_tags == (NAME,)
    assert image.repo_digests[0].startswith("r.example/team/app@sha256:")
    assert (image.config.cmd, image.config.user) == (("/app",), "7")
    assert image.size >= 8192
    again = await reopened(store, tmp_path, reaper)
    for text in (NAME, image.id, image.id[7:20], image.repo_digests[0]):
        assert store.find(text) == image
        assert again.find(text) == image
    stack = again.layer_stack(image)
    assert stack == store.layer_stack(image)
    assert (stack.layers_dir / stack.lowers[0] / "app").read_bytes() == b"#!/bin/sh\n"
    assert (stack.layers_dir / stack.lowers[1] / "etc/os").read_bytes() == b"test\n"
    assert await again.fs_usage() == await store.fs_usage()


@pytest.mark.parametrize("shared_by_links", [False, True])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
async def test_docker_archives_come_in_whatever_their_packing(
    store: ImageStore, shared_by_links: bool, pack: type[bytes]
) -> None:
    archive = docker_archive(BASE, APP, tags=["app:2"], shared_by_links=shared_by_links)
    image = await bring(store, pack(archive))
    assert image.repo_tags == ("docker.io/library/app:2",)
    assert image.repo_digests == ()
    assert len(store.layer_stack(image).lowers) == 2


async def test_the_name_that_is_given_counts(store: ImageStore) -> None:
    image = await bring(store, oci_archive(BASE, name=NAME), "busybox")
    assert image.repo_tags == ("docker.io/library/busybox:latest",)
    assert store.find(NAME) is None
    with pytest.raises(BadImageReferenceError):
        await bring(store, oci_archive(BASE), "No/Name")


async def test_progress_is_told_layer_by_layer(store: ImageStore) -> None:
    told: list[ImportProgress] = []
    await store.import_archive(stream(oci_archive(BASE, APP, name=NAME)), None, told.append)
    assert [(each.step, each.image, each.done, each.total) for each in told] == [
        ("received", NAME, 0, 2),
        ("layer", NAME, 1, 2),
        ("layer", NAME, 2, 2),
        ("committed", NAME, 2, 2),
    ]


async def test_a_tag_moves_and_leaves_the_old_image_without_a_name(store: ImageStore) -> None:
    old = await bring(store, docker_archive(BASE, tags=["app:1"]))
    new = await bring(store, docker_archive(BASE, APP, tags=["app:1"]))
    found = store.find("app:1")
    assert found is not None
    assert found.id == new.id
    left = store.find(old.id)
    assert left is not None
    assert (left.repo_tags, left.repo_digests) == ((), ())
    assert len(store.images()) == 2


async def test_importing_the_same_again_changes_nothing(store: ImageStore, tmp_path: Path) -> None:
    first = await bring(store, oci_archive(BASE, APP, name=NAME))
    before = files_below(*dirs_of(tmp_path))
    assert await bring(store, oci_archive(BASE, APP, name=NAME)) == first
    assert files_below(*dirs_of(tmp_path)) == before


async def test_imports_at_once_share_their_layers(store: ImageStore, tmp_path: Path) -> None:
    archives = [
        oci_archive(BASE, APP, name=f"r.example/a:{n}", labels={"n": str(n)}) for n in "1234"
    ]
    images = await asyncio.gather(*(bring(store, archive) for archive in archives))
    assert len({image.id for image in images}) == 4
    assert len({store.layer_stack(image).lowers for image in images}) == 1
    names = sorted(path.name for path in (tmp_path / "layers").iterdir())
    assert names == [".ingest", "0", "1"]


async def test_an_image_of_many_layers_keeps_their_order(store: ImageStore) -> None:
    layers = [layer(file("top", b"%d" % n), file(f"f{n}")) for n in range(61)]
    image = await bring(store, oci_archive(*layers, name=NAME))
    stack = store.layer_stack(image)
    contents = [(stack.layers_dir / name / "top").read_bytes() for name in stack.lowers]
    assert contents == [b"%d" % n for n in reversed(range(61))]
    assert max(map(len, stack.lowers)) == 2


async def test_an_image_without_layers_is_an_image(store: ImageStore) -> None:
    image = await bring(store, oci_archive(name=NAME))
    stack = store.layer_stack(image)
    [name] = stack.lowers
    assert os.listdir(stack.layers_dir / name) == []


async def test_the_same_layer_twice_in_one_image_is_two_of_the_stack(store: ImageStore) -> None:
    image = await bring(store, oci_archive(BASE, APP, BASE, name=NAME))
    assert len(set(store.layer_stack(image).lowers)) == 3


async def test_the_built_in_images_come_in(store: ImageStore, tmp_path: Path) -> None:
    [pause] = await store.import_archive(pause_archive(), PAUSE_REFERENCE)
    assert pause.pinned
    stack = store.layer_stack(pause)
    assert os.access(stack.layers_dir / stack.lowers[0] / "catatonit", os.X_OK)
    demo = await bring(store, busybox_archive())
    stack = store.layer_stack(demo)
    shell = stack.layers_dir / stack.lowers[0] / "bin/sh"
    assert shell.stat().st_nlink > 50


async def test_pinned_images_say_so(tmp_path: Path, reaper: Reaper) -> None:
    store = await ImageStore.open(*dirs_of(tmp_path), reaper, pinned=["app:1"])
    assert (await bring(store, docker_archive(BASE, tags=["app:1"]))).pinned
    assert not (await bring(store, docker_archive(APP, tags=["app:2"]))).pinned
    await store.close()


async def test_packed_layers_are_kept_unless_told_otherwise(tmp_path: Path, reaper: Reaper) -> None:
    for discard in (False, True):
        place = tmp_path / str(discard)
        store = await ImageStore.open(*dirs_of(place), reaper, discard_blobs=discard)
        await bring(store, oci_archive(BASE, name=NAME))
        blobs = {path.name for path in (place / "images/blobs/sha256").iterdir()}
        assert (BASE.digest[7:] in blobs) is not discard
        assert len(blobs) == 2 + (not discard)
        again = await reopened(store, place, reaper)
        assert len(again.images()) == 1


async def test_the_directories_are_root_s_alone(store: ImageStore, tmp_path: Path) -> None:
    await bring(store, oci_archive(BASE, name=NAME))
    for path in (tmp_path / "images", tmp_path / "layers"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    index = json.loads((tmp_path / "images/index.json").read_bytes())
    assert index["manifests"][0]["annotations"] == {"org.opencontainers.image.ref.name": NAME}


# What a stack of layers looks like


async def test_a_mounted_stack_shows_what_the_layers_mean(
    store: ImageStore, tmp_path: Path
) -> None:
    low = layer(
        symlink("srv/link", "/etc/target"),
        directory("etc/target"),
        directory("tmp", 0o1777),
        directory("private", 0o700, uid=7, gid=8, mtime=1000, xattrs={"user.kind": b"p"}),
        directory("gone"),
        file("gone/a"),
        directory("opq"),
        file("opq/old"),
        file("swap", b"file"),
        directory("turn"),
        file("turn/x"),
        directory("back"),
        file("back/a"),
    )
    high = layer(
        file("tmp/new"),
        file("private/new"),
        whiteout("gone"),
        whiteout("never"),
        directory("opq"),
        opaque("opq"),
        file("opq/new"),
        directory("swap"),
        file("swap/now-dir"),
        file("turn", b"now a file"),
        whiteout("back"),
        directory("back"),
        file("back/b"),
    )
    image = await bring(store, oci_archive(low, high, name=NAME))
    work = tmp_path / "mounted"
    work.mkdir()
    with mounted(store.layer_stack(image), work) as root:
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        assert names == sorted(
            [
                *(
                    "back",
                    "back/b",
                    "etc",
                    "etc/target",
                    "opq",
                    "opq/new",
                    "private",
                    "private/new",
                ),
                *("srv", "srv/link", "swap", "swap/now-dir", "tmp", "tmp/new", "turn"),
            ]
        )
        # Directories that the upper layer only uses look as the lower layer made them.
        assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
        private = (root / "private").stat()
        assert (stat.S_IMODE(private.st_mode), private.st_uid, private.st_gid) == (0o700, 7, 8)
        assert private.st_mtime == 1000
        assert os.getxattr(root / "private", "user.kind") == b"p"


async def test_a_directory_inherits_from_the_layer_that_shows_it(store: ImageStore) -> None:
    layers = [
        layer(directory("a", 0o711), directory("b", 0o711), directory("c", 0o711)),
        layer(directory("a", 0o722), file("b"), whiteout("c")),
        layer(file("unrelated")),
        layer(file("a/x"), file("b/x"), file("c/x"), file("d/x")),
    ]
    image = await bring(store, oci_archive(*layers, name=NAME))
    stack = store.layer_stack(image)
    top = stack.layers_dir / stack.lowers[0]
    modes = {name: stat.S_IMODE((top / name).stat().st_mode) for name in "abcd"}
    assert modes == {"a": 0o722, "b": 0o755, "c": 0o755, "d": 0o755}


async def test_a_layer_cannot_inherit_through_a_lower_layer_s_link(
    store: ImageStore, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o751)
    image = await bring(
        store,
        oci_archive(layer(symlink("l", str(tmp_path))), layer(file("l/secret/x")), name=NAME),
    )
    stack = store.layer_stack(image)
    made = stack.layers_dir / stack.lowers[0] / "l/secret"
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    assert list(secret.iterdir()) == []


# What goes


async def test_removal_takes_all_names_and_everything_that_only_this_image_had(
    store: ImageStore, tmp_path: Path
) -> None:
    await bring(store, oci_archive(name="r.example/first:1"))
    before = files_below(*dirs_of(tmp_path))
    usage = await store.fs_usage()
    image = await bring(store, oci_archive(BASE, APP, name=NAME))
    await bring(store, oci_archive(BASE, APP, name="r.example/second:2"))
    assert (await store.remove("r.example/second:2")).id == image.id
    assert store.find(NAME) is None
    assert store.find(image.id) is None
    assert files_below(*dirs_of(tmp_path)) == before
    assert await store.fs_usage() == usage


async def test_layers_of_another_image_stay(store: ImageStore) -> None:
    await bring(store, oci_archive(BASE, APP, name="r.example/a:1"))
    kept = await bring(store, oci_archive(BASE, OTHER, name="r.example/b:1"))
    await store.remove("r.example/a:1")
    stack = store.layer_stack(kept)
    assert (stack.layers_dir / stack.lowers[1] / "etc/os").exists()
    assert sorted(os.listdir(stack.layers_dir)) == sorted([".ingest", *stack.lowers])


async def test_layers_of_a_container_stay_until_it_goes(tmp_path: Path, reaper: Reaper) -> None:
    in_use: set[str] = set()
    store = await ImageStore.open(*dirs_of(tmp_path), reaper, in_use=lambda: in_use)
    image = await bring(store, oci_archive(BASE, APP, name=NAME))
    in_use.add(store.layer_stack(image).lowers[0])
    await store.remove(NAME)
    assert len(os.listdir(tmp_path / "layers")) == 3
    # An image that comes back uses what is still here.
    back = await bring(store, oci_archive(BASE, APP, name=NAME))
    assert store.layer_stack(back).lowers[0] in in_use
    await store.remove(NAME)
    in_use.clear()
    assert await store.sweep() == 2
    assert os.listdir(tmp_path / "layers") == [".ingest"]
    await store.close()


async def test_held_layers_stay(store: ImageStore, tmp_path: Path) -> None:
    image = await bring(store, oci_archive(BASE, name=NAME))
    with store.hold(image) as stack:
        await store.remove(NAME)
        assert (stack.layers_dir / stack.lowers[0]).exists()
    await store.sweep()
    assert os.listdir(tmp_path / "layers") == [".ingest"]


@pytest.mark.parametrize("text", ["nosuch", "sha256:" + "0" * 64])
async def test_removing_what_is_not_there_says_so(store: ImageStore, text: str) -> None:
    with pytest.raises(NotFoundError):
        await store.remove(text)


# What goes wrong


def lying_archive() -> bytes:
    """An image whose second layer is not what its configuration promises."""
    promised = layer(file("a", b"promised"))
    given = layer(file("a", b"given"))
    lie = type(promised)(given.blob, promised.diff_id, given.media_type)
    return oci_archive(BASE, lie, APP, name=NAME)


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (lying_archive(), "ha(s|ve) the digest"),
        (oci_archive(BASE, layer(hardlink("a", "/etc/passwd")), name=NAME), "hard link"),
        (oci_archive(BASE, APP, name=NAME)[:6000], "[Tt]runcated"),
        (gzip.compress(oci_archive(BASE, name=NAME))[:-10], "ends too early"),
        (oci_archive(BASE, name=NAME, without=["index.json"]), "neither"),
        (oci_archive(BASE, name="cri-shim.local/pause:1"), "built-in"),
        (b"", "empty"),
        (random.Random(4).randbytes(50_000), "not a tar"),
    ],
    ids=["lie", "hostile", "cut", "cut gzip", "no index", "reserved name", "empty", "noise"],
)
async def test_a_bad_archive_leaves_nothing(
    store: ImageStore, tmp_path: Path, archive: bytes, reason: str
) -> None:
    kept = await bring(store, oci_archive(OTHER, name="r.example/kept:1"))
    before = files_below(*dirs_of(tmp_path))
    usage = await store.fs_usage()
    with pytest.raises(BadArchiveError, match=reason):
        await bring(store, archive)
    assert files_below(*dirs_of(tmp_path)) == before
    assert await store.fs_usage() == usage
    assert list(store.images()) == [kept]


async def test_an_upload_that_breaks_off_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    before = files_below(*dirs_of(tmp_path))

    async def broken() -> AsyncIterator[bytes]:
        yield oci_archive(BASE, name=NAME)[:2000]
        raise CriShimError("the client is gone")

    with pytest.raises(CriShimError, match="the client is gone"):
        await store.import_archive(broken())
    assert files_below(*dirs_of(tmp_path)) == before


@pytest.mark.parametrize("after", ["received", "layer", "committed"])
async def test_a_cancelled_import_is_whole_or_leaves_nothing(
    store: ImageStore, tmp_path: Path, after: str
) -> None:
    before = files_below(*dirs_of(tmp_path))

    def cancel(progress: ImportProgress) -> None:
        if progress.step == after:
            task.cancel()

    archive = oci_archive(BASE, APP, OTHER, name=NAME)
    task = asyncio.get_running_loop().create_task(
        store.import_archive(stream(archive), None, cancel)
    )
    await asyncio.wait([task])
    if store.find(NAME) is None:
        assert task.cancelled()
        files = files_below(*dirs_of(tmp_path))
        assert {f for f in files if not f.endswith(("index.json", "oci-layout"))} == before
    else:
        assert len(store.layer_stack(store.images()[0]).lowers) == 3
    await bring(store, archive)
    assert len(store.images()) == 1


async def test_a_failing_import_does_not_spoil_one_that_shares_its_layers(
    store: ImageStore, tmp_path: Path
) -> None:
    good = oci_archive(BASE, APP, name="r.example/good:1")
    results = await asyncio.gather(
        bring(store, lying_archive()), bring(store, good), return_exceptions=True
    )
    assert isinstance(results[0], BadArchiveError)
    assert isinstance(results[1], Image)
    stack = store.layer_stack(results[1])
    assert sorted(os.listdir(tmp_path / "layers")) == sorted([".ingest", *stack.lowers])


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, reaper: Reaper) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount_tmpfs(place, size_bytes=3 << 20)
    try:
        store = await ImageStore.open(*dirs_of(place), reaper)
        await bring(store, oci_archive(OTHER, name="r.example/kept:1"))
        before = files_below(place)
        big = layer(file("big", random.Random(5).randbytes(1 << 20)), compression="gzip")
        bomb = layer(file("bomb", bytes(8 << 20)), compression="gzip")
        for archive in (oci_archive(big, bomb, name=NAME), oci_archive(big, big, big, name=NAME)):
            with pytest.raises(ResourceExhaustedError, match="free some space"):
                await bring(store, archive)
            assert files_below(place) == before
        await bring(store, oci_archive(BASE, name=NAME))
        await store.close()
    finally:
        unmount(place)


# What a crash leaves


async def test_leftovers_of_a_crash_go(store: ImageStore, tmp_path: Path, reaper: Reaper) -> None:
    image = await bring(store, oci_archive(BASE, APP, name=NAME))
    before = files_below(*dirs_of(tmp_path))
    (tmp_path / "layers/.ingest/layer-7/deep/er").mkdir(parents=True)
    (tmp_path / "images/.ingest/archive-7").mkdir()
    (tmp_path / "images/.ingest/archive-7/m1").write_bytes(b"x")
    (tmp_path / "layers/zz/etc").mkdir(parents=True)  # a layer that never got its record
    (tmp_path / "layers/lost+found").mkdir()
    (tmp_path / "images/blobs/sha256" / ("0" * 64)).write_bytes(b"x")
    (tmp_path / "images/layers/x.json.1-1.tmp").write_bytes(b"{")
    again = await reopened(store, tmp_path, reaper)
    assert list(again.images()) == [image]
    assert await again.sweep() == 1
    assert files_below(*dirs_of(tmp_path)) == before | {str(tmp_path / "layers/lost+found")}


async def test_a_stray_that_a_container_is_mounted_from_stays(
    store: ImageStore, tmp_path: Path, reaper: Reaper
) -> None:
    (tmp_path / "layers/a").mkdir()
    again = await ImageStore.open(*dirs_of(tmp_path), reaper, in_use=lambda: {"a"})
    await again.sweep()
    image = await bring(again, oci_archive(*[layer(file(str(n))) for n in range(12)], name=NAME))
    assert "a" not in again.layer_stack(image).lowers
    assert (tmp_path / "layers/a").exists()
    await again.close()


@pytest.mark.parametrize(
    "damage", ["record", "record of another", "layer", "manifest", "config", "torn manifest"]
)
async def test_damage_takes_its_image_out_and_no_other(
    store: ImageStore, tmp_path: Path, reaper: Reaper, damage: str
) -> None:
    archive = oci_archive(BASE, APP, name=NAME)
    hurt = await bring(store, archive)
    whole = await bring(store, oci_archive(OTHER, name="r.example/whole:1"))
    blobs, records = tmp_path / "images/blobs/sha256", tmp_path / "images/layers"
    record = records / f"{hurt.chain[1][7:]}.json"
    match damage:
        case "record":
            record.write_bytes(b'{"chain_id":')
        case "record of another":
            record.write_bytes((records / f"{whole.chain[0][7:]}.json").read_bytes())
        case "layer":
            (tmp_path / "layers" / store.layer_stack(hurt).lowers[0]).rename(tmp_path / "moved")
        case "manifest":
            (blobs / hurt.manifest_digests[0][7:]).unlink()
        case "torn manifest":
            (blobs / hurt.manifest_digests[0][7:]).write_bytes(b"")
        case "config":
            (blobs / hurt.id[7:]).write_bytes(b"{}")
    again = await reopened(store, tmp_path, reaper)
    assert list(again.images()) == [whole]
    # Bringing it again repairs it.
    back = await bring(again, archive)
    assert back.id == hurt.id
    assert back.repo_tags == (NAME,)
    last = await reopened(again, tmp_path, reaper)
    assert {image.id for image in last.images()} == {hurt.id, whole.id}
    stack = last.layer_stack(back)
    assert (stack.layers_dir / stack.lowers[0] / "app").exists()


async def test_a_damaged_index_is_set_aside(
    store: ImageStore, tmp_path: Path, reaper: Reaper
) -> None:
    await bring(store, oci_archive(BASE, name=NAME))
    (tmp_path / "images/index.json").write_bytes(b"\0" * 100)
    again = await reopened(store, tmp_path, reaper)
    assert list(again.images()) == []
    assert (tmp_path / "images/damaged/index.json.0").read_bytes() == b"\0" * 100
    image = await bring(again, oci_archive(BASE, name=NAME))
    assert image.repo_tags == (NAME,)
    await again.close()


async def test_nothing_waits_for_an_import(store: ImageStore) -> None:
    image = await bring(store, oci_archive(BASE, name=NAME))
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        archive = oci_archive(APP, name="r.example/slow:1")
        yield archive[:1000]
        await go_on.wait()
        yield archive[1000:]

    importing = asyncio.get_running_loop().create_task(store.import_archive(slow()))
    await asyncio.sleep(0.05)
    assert store.find(NAME) == image
    await store.remove(NAME)
    assert list(store.images()) == []
    go_on.set()
    [slow_image] = await importing
    assert list(store.images()) == [slow_image]
    assert digest_of(b"") not in store.layer_stack(slow_image).lowers
