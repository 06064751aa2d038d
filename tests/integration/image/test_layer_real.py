"""Layers unpacked by the real confined child: everything a layer may have, and everything a hostile one tries."""

from __future__ import annotations

import gzip
import os
import random
import stat
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import BadArchiveError
from cri_shim.image.unpack.client import Unpacker
from cri_shim.image.unpack.protocol import LayerReport, Limits
from tests.images import (
    MTIME,
    device,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    stream,
    symlink,
    tar_of,
    whiteout,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.process import Reaper

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
Unpack = Callable[[bytes], Awaitable[LayerReport]]
NOISE = layer(file("a", random.Random(3).randbytes(90_000)), compression="gzip")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def names_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# What a layer may have


async def test_files_have_their_modes_owners_and_times(unpack: Unpack, root: Path) -> None:
    await unpack(
        tar_of(
            [
                directory("srv", 0o3777, gid=100),
                file("srv/suid", b"x", 0o4755, uid=1000, gid=8),
                file("srv/sgid", b"x", 0o2755, gid=8),
                file("srv/none", b"", 0o000, uid=3_000_000, gid=4_000_000_000),
                file("srv/old", b"", mtime=-100),
            ]
        )
    )
    found = {name: os.stat(root / "srv" / name) for name in os.listdir(root / "srv")}
    assert stat.S_IMODE(os.stat(root / "srv").st_mode) == 0o3777
    assert stat.S_IMODE(found["suid"].st_mode) == 0o4755
    assert (found["suid"].st_uid, found["suid"].st_gid) == (1000, 8)
    assert stat.S_IMODE(found["sgid"].st_mode) == 0o2755
    assert (found["none"].st_uid, found["none"].st_gid) == (3_000_000, 4_000_000_000)
    assert stat.S_IMODE(found["none"].st_mode) == 0
    assert found["old"].st_mtime == -100


async def test_a_directory_keeps_its_time_though_files_come_later(
    unpack: Unpack, root: Path
) -> None:
    await unpack(
        tar_of([directory("d", mtime=12345), directory("d/e"), file("d/e/f"), file("d/g")])
    )
    assert (root / "d").stat().st_mtime == 12345
    assert (root / "d/e").stat().st_mtime == MTIME


async def test_devices_fifos_and_links_are_made(unpack: Unpack, root: Path) -> None:
    report = await unpack(
        tar_of(
            [
                device("null", 1, 3, 0o666),
                device("loop0", 7, 0, 0o660, block=True),
                fifo("pipe"),
                file("target", b"x" * 5000),
                hardlink("hard", "target"),
                symlink("soft", "/etc/passwd", uid=5),
                hardlink("soft2", "soft"),
            ]
        )
    )
    null, loop = (os.lstat(root / name) for name in ("null", "loop0"))
    assert stat.S_ISCHR(null.st_mode)
    assert stat.S_IMODE(null.st_mode) == 0o666
    assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
    assert stat.S_ISBLK(loop.st_mode)
    assert stat.S_ISFIFO(os.lstat(root / "pipe").st_mode)
    assert os.stat(root / "hard").st_ino == os.stat(root / "target").st_ino
    assert os.readlink(root / "soft") == "/etc/passwd"
    assert os.lstat(root / "soft").st_mtime == MTIME
    assert os.lstat(root / "soft2").st_nlink == 2
    assert report.inodes == 5
    assert report.disk_bytes == 8192


async def test_attributes_are_kept_but_for_those_that_are_the_node_s(
    unpack: Unpack, root: Path
) -> None:
    report = await unpack(
        tar_of(
            [
                file(
                    "ping",
                    b"x",
                    0o755,
                    xattrs={
                        "security.capability": CAPABILITY,
                        "user.bytes": bytes(range(256)),
                        "trusted.overlay.opaque": b"y",
                        "user.overlay.whiteout": b"y",
                        "security.selinux": b"label\0",
                    },
                ),
                directory("d", xattrs={"user.kind": b"d", "trusted.overlay.redirect": b"/etc"}),
            ]
        )
    )
    assert set(os.listxattr(root / "ping")) == {"security.capability", "user.bytes"}
    assert os.getxattr(root / "ping", "security.capability") == CAPABILITY
    assert os.getxattr(root / "ping", "user.bytes") == bytes(range(256))
    assert os.listxattr(root / "d") == ["user.kind"]
    assert report.dropped_xattrs == 4


async def test_a_hard_link_s_header_is_the_inode_s_and_capabilities_survive_it(
    unpack: Unpack, root: Path
) -> None:
    await unpack(
        tar_of(
            [
                file("a", b"x", 0o755, xattrs={"security.capability": CAPABILITY}),
                hardlink("b", "a", 0o700),
            ]
        )
    )
    assert stat.S_IMODE(os.stat(root / "a").st_mode) == 0o700
    assert os.getxattr(root / "a", "security.capability") == CAPABILITY


async def test_whiteouts_become_devices_and_opaque_directories_are_reported(
    unpack: Unpack, root: Path
) -> None:
    report = await unpack(
        tar_of(
            [
                whiteout("gone"),
                directory("etc"),
                opaque("etc"),
                file("etc/new"),
                whiteout("deep/er/gone"),
                file(".wh..wh.plnk/1.2"),
                file("a/.wh..wh.orph"),
            ]
        )
    )
    for path in ("gone", "deep/er/gone"):
        made = os.lstat(root / path)
        assert stat.S_ISCHR(made.st_mode)
        assert made.st_rdev == 0
    assert report.opaque_dirs == [b"etc"]
    assert report.implied_dirs == [b"deep", b"deep/er"]
    assert names_below(root) == ["deep", "deep/er", "deep/er/gone", "etc", "etc/new", "gone"]


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_whiteout_never_hides_what_its_own_layer_brings(
    unpack: Unpack, root: Path, reverse: bool
) -> None:
    entries = [whiteout("d"), whiteout("f")]
    brought = [directory("d"), file("d/new"), file("f", b"new")]
    report = await unpack(tar_of([*brought, *entries] if reverse else [*entries, *brought]))
    assert (root / "f").read_bytes() == b"new"
    assert (root / "d/new").exists()
    # What lower layers have in `d` stays hidden: the directory is a new one.
    assert report.opaque_dirs == [b"d"]


async def test_a_path_may_change_its_kind_between_entries(unpack: Unpack, root: Path) -> None:
    report = await unpack(
        tar_of(
            [
                directory("a"),
                file("a/x", b"x" * 9000),
                directory("a/y"),
                file("a", b"now a file"),
                file("b", b"file"),
                directory("b"),
                file("b/in"),
                symlink("c", "b"),
                directory("c"),
                file("c/own"),
                directory("e"),
                symlink("e", "b"),
                file("e/through"),
            ]
        )
    )
    assert (root / "a").read_bytes() == b"now a file"
    assert names_below(root) == ["a", "b", "b/in", "b/through", "c", "c/own", "e"]
    assert report.inodes == 7
    assert report.disk_bytes == 3 * 4096


async def test_of_two_entries_with_one_name_the_later_counts(unpack: Unpack, root: Path) -> None:
    await unpack(tar_of([file("a", b"first"), hardlink("b", "a"), file("a", b"second")]))
    assert (root / "a").read_bytes() == b"second"
    assert (root / "b").read_bytes() == b"first"


async def test_a_file_below_a_link_lands_where_the_link_leads(unpack: Unpack, root: Path) -> None:
    await unpack(
        tar_of(
            [
                symlink("lib", "usr/lib"),
                file("lib/a", b"a"),
                symlink("abs", "/opt/real"),
                file("abs/b", b"b"),
                symlink("one", "two"),
                symlink("two", "./three/../four"),
                directory("three"),
                file("one/c", b"c"),
            ]
        )
    )
    assert (root / "usr/lib/a").read_bytes() == b"a"
    assert (root / "opt/real/b").read_bytes() == b"b"
    assert (root / "four/c").read_bytes() == b"c"
    assert (root / "lib").is_symlink()


async def test_names_keep_their_bytes(unpack: Unpack, root: Path) -> None:
    raw = [b"caf\xc3\xa9", b"cafe\xcc\x81", b"bad\xff\xfe", b"new\nline", b"-rf *", b"x" * 255]
    await unpack(tar_of([file(os.fsdecode(name), name) for name in raw]))
    assert sorted(os.listdir(os.fsencode(root))) == sorted(raw)


async def test_a_path_longer_than_a_ustar_name_is_made(unpack: Unpack, root: Path) -> None:
    path = "/".join(f"d{number:02}-" + "n" * 60 for number in range(20)) + "/file"
    await unpack(tar_of([file(path, b"deep")]))
    assert (root / path).read_bytes() == b"deep"


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_every_packing_gives_the_promised_diff_id(unpack: Unpack, compression: str) -> None:
    made = layer(file("a", random.Random(2).randbytes(200_000)), compression=compression)
    assert (await unpack(made.blob)).diff_id == made.diff_id


async def test_bytes_behind_the_end_of_the_tar_belong_to_the_diff_id(unpack: Unpack) -> None:
    made = layer(tar=tar_of([file("a", b"x")]) + bytes(100_000) + b"trailing")
    assert (await unpack(made.blob)).diff_id == made.diff_id


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("tar", [None, b""], ids=["end mark", "no byte"])
async def test_an_empty_layer_is_a_layer(
    unpack: Unpack, root: Path, compression: str, tar: bytes | None
) -> None:
    made = layer(compression=compression, tar=tar)
    report = await unpack(made.blob)
    assert (report.diff_id, report.inodes, names_below(root)) == (made.diff_id, 0, [])


async def test_a_real_tree_comes_out_as_it_went_in(
    reaper: Reaper, unpack: Unpack, root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir(mode=0o755)
    copied = ["/etc", "/usr/share/perl5", "/usr/share/zoneinfo"]
    await reaper.run(["cp", "-a", *copied, str(source)], timeout_s=60)
    (source / "prog").write_bytes(b"\x7fELF" + bytes(5000))
    os.chown(source / "prog", 0, 8)
    os.chmod(source / "prog", 0o2755)
    os.setxattr(source / "prog", "security.capability", CAPABILITY)
    os.setxattr(source / "etc", "user.note", b"n\0te")
    os.link(source / "prog", source / "etc/prog-too")
    with open(source / "sparse", "wb") as sparse:
        sparse.seek(5 << 20)
        sparse.write(b"end")
        sparse.truncate(9 << 20)
    archive = tmp_path / "layer.tar"
    attributes = ["--xattrs", "--xattrs-include=*", "--sparse"]
    made = await reaper.run(
        ["tar", *attributes, "-C", str(source), "-cf", str(archive), "."], timeout_s=60
    )
    assert made.ok, made.stderr_tail
    await unpack(gzip.compress(archive.read_bytes(), 1))
    assert describe(root) == describe(source)
    assert os.stat(root / "sparse").st_blocks <= os.stat(source / "sparse").st_blocks + 16


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be compared of each path below `root`."""
    inodes: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        status = os.lstat(path)
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[name] = (
            stat.filemode(status.st_mode),
            status.st_uid,
            status.st_gid,
            # GNU tar's own format keeps whole seconds.
            int(status.st_mtime),
            status.st_rdev,
            status.st_size if path.is_file() else 0,
            inodes.setdefault(status.st_ino, name),
            content,
            {key: os.getxattr(path, key, follow_symlinks=False) for key in _xattrs(path)},
        )
    return found


def _xattrs(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


# What a hostile layer tries


async def test_no_name_leads_out_of_the_root(unpack: Unpack, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    up = "../" * 30
    await unpack(
        tar_of(
            [
                file("../dotdot", b"x"),
                file(f"{up}{outside}", b"x"),
                file(str(outside), b"x"),
                file("/tmp/absolute", b"x"),
                symlink("up", up),
                file(f"up{outside.parent}/uplink", b"x"),
                symlink("abs", str(tmp_path)),
                file("abs/abslink", b"x"),
                symlink("out", str(outside)),
                file("out", b"replaces the link"),
                symlink("self", "."),
                file("self/self/self/in", b"x"),
            ]
        )
    )
    assert outside.read_text() == "untouched"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root"]
    assert (root / "dotdot").exists()
    assert (root / "tmp/absolute").exists()
    assert (root / str(tmp_path)[1:] / "uplink").exists()
    assert (root / str(tmp_path)[1:] / "abslink").exists()
    assert (root / "out").read_bytes() == b"replaces the link"
    assert (root / "in").exists()


@pytest.mark.parametrize("target", ["../../../etc/passwd", "/etc/passwd", "etc/passwd"])
async def test_a_hard_link_to_what_the_layer_does_not_have_is_refused(
    unpack: Unpack, target: str
) -> None:
    with pytest.raises(BadArchiveError, match="no earlier entry of this layer"):
        await unpack(tar_of([hardlink("mine", target)]))


async def test_a_hard_link_through_a_link_stays_inside(unpack: Unpack, root: Path) -> None:
    await unpack(
        tar_of([symlink("etc", "/real"), file("real/passwd", b"own"), hardlink("h", "etc/passwd")])
    )
    assert (root / "h").read_bytes() == b"own"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([directory("d"), hardlink("h", "d")], "a directory"),
        ([directory("d"), file("d/f"), hardlink("d", "d/f")], "No such file"),
        ([file(".wh.")], "whiteout of ''"),
        ([file(".wh..")], "whiteout of '.'"),
        ([file("a/.wh...")], "whiteout of '..'"),
        ([file("f"), file("f/below")], "is a file, not a directory"),
        ([file("f"), whiteout("f/below")], "is a file, not a directory"),
        ([symlink("a", "b"), symlink("b", "a"), file("a/f")], "symbolic links on its way"),
        ([symlink("l", "x" * 300), file("l/f")], "File name too long"),
        ([file("x" * 300)], "a component has 300 bytes"),
        ([file("d/" * 2100 + "f")], "the path has 4201 bytes"),
        ([symlink("l", "y" * 5000)], "target is empty or too long"),
        ([file("f", uid=1 << 32)], "does not fit into 32 bits"),
        ([file("f", uid=(1 << 32) - 1)], "does not fit into 32 bits"),
        ([file("f", xattrs={"user.big": b"x" * 70_000})], "attribute 'user.big' of 70000 bytes"),
        ([file("f", xattrs={"security.capability": b"junk"})], "security.capability"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_entry_that_makes_no_sense_is_refused_by_name(
    unpack: Unpack, entries: list[tuple[object, bytes]], reason: str
) -> None:
    with pytest.raises(BadArchiveError, match=reason):
        await unpack(tar_of(entries))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"this is no tar" * 100, "not a tar archive"),
        (gzip.compress(b"this is no tar" * 100), "not a tar archive"),
        (NOISE.blob[:50_000], "ends too early"),
        (tar_of([file("a", b"x" * 90_000)])[:50_000], "[Tt]runcated"),
        (b"BZh91AY&SY" + bytes(100), "bzip2"),
    ],
    ids=["text", "packed text", "cut gzip", "cut tar", "bzip2"],
)
async def test_damage_is_told_with_its_cause(unpack: Unpack, blob: bytes, reason: str) -> None:
    with pytest.raises(BadArchiveError, match=reason):
        await unpack(blob)


@pytest.mark.parametrize(
    ("limits", "entries", "reason"),
    [
        (Limits(max_inodes=100), [file(f"f{n}") for n in range(101)], "more than 100 entries"),
        (Limits(max_inodes=100), [file("d/" * 101 + "f")], "more than 100 files and directories"),
        (Limits(max_bytes=1 << 20), [file("f", bytes(2 << 20))], "more than 1048576 bytes"),
    ],
    ids=["entries", "directories", "bytes"],
)
async def test_a_bomb_meets_its_bound(
    reaper: Reaper,
    root: Path,
    limits: Limits,
    entries: list[tuple[object, bytes]],
    reason: str,
) -> None:
    unpacker = Unpacker(reaper, limits=limits)
    fd = os.open(root, os.O_RDONLY)
    try:
        blob = gzip.compress(tar_of(entries))  # type: ignore[arg-type]
        with pytest.raises(BadArchiveError, match=reason):
            await unpacker.unpack_layer(stream(blob), fd, what="bomb")
    finally:
        os.close(fd)
        await unpacker.close()


async def test_a_file_of_holes_cannot_be_larger_than_a_layer(
    reaper: Reaper, root: Path, tmp_path: Path
) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as holes:
        holes.truncate(1 << 40)
    made = await reaper.run(
        ["tar", "--sparse", "-C", str(tmp_path), "-cf", "-", "sparse"], timeout_s=60
    )
    unpacker = Unpacker(reaper, limits=Limits(max_bytes=1 << 30))
    fd = os.open(root, os.O_RDONLY)
    try:
        with pytest.raises(BadArchiveError, match=r"larger than|too large"):
            await unpacker.unpack_layer(stream(made.stdout), fd, what="holes")
    finally:
        os.close(fd)
        await unpacker.close()


async def test_kinds_that_change_all_the_time_take_bounded_time(unpack: Unpack, root: Path) -> None:
    entries = []
    for number in range(3000):
        entries += [directory("a"), file(f"a/{number}/x"), file("a")]
    await unpack(tar_of(entries))
    assert names_below(root) == ["a"]
