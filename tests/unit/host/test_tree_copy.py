from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cri_shim.host.tree import disk_usage
from cri_shim.host.tree_copy import copy_tree

ROOT = os.geteuid() == 0


def copied(source: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    target.mkdir()
    fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
    try:
        copy_tree(fd, target)
    finally:
        os.close(fd)
    return target


def described(top: Path) -> dict[str, tuple[object, ...]]:
    """Every entry below a directory, by what a program in the container could see of it."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in (".", *folders, *files):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            found[os.path.relpath(path, top)] = (
                *(info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_rdev),
                os.readlink(path) if stat.S_ISLNK(info.st_mode) else "",
                Path(path).read_bytes() if stat.S_ISREG(info.st_mode) else b"",
            )
    return found


def test_copy_is_the_same_in_all_that_a_container_sees(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/empty").touch()
    (source / "a/b/data").write_bytes(os.urandom(70_000))
    (source / "a/b/data").chmod(0o4750)
    (source / "a/b").chmod(0o1777)
    (source / "a/link").symlink_to("/etc/passwd")
    (source / "dangling").symlink_to("../../nowhere")
    os.mkfifo(source / "fifo", 0o640)
    (source / os.fsdecode(b"\xff\n")).write_text("odd name")
    if ROOT:
        os.chown(source / "a/b/data", 1000, 1001)
        (source / "a/b/data").chmod(0o4750)
        os.chown(source / "a/link", 7, 8, follow_symlinks=False)
        os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for path in (source / "a/b/data", source / "a/b", source):
        os.utime(path, ns=(1_000_000_007, 2_000_000_009))
    assert described(copied(source, tmp_path)) == described(source)


def test_links_are_copied_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    source = tmp_path / "source"
    source.mkdir()
    (source / "dir").symlink_to(outside)
    (source / "file").symlink_to(outside / "secret")
    copy = copied(source, tmp_path)
    assert sorted(os.listdir(copy)) == ["dir", "file"]
    assert all((copy / name).is_symlink() for name in os.listdir(copy))


def test_hard_links_stay_hard_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "one").write_text("x")
    os.link(source / "one", source / "deep/two")
    copy = copied(source, tmp_path)
    assert (copy / "one").stat().st_ino == (copy / "deep/two").stat().st_ino


def test_holes_stay_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 30)
        file.write(b"middle")
    copy = copied(source, tmp_path)
    assert (copy / "sparse").stat().st_size == 1 << 40
    assert disk_usage(copy).used_bytes < 1 << 20
    with (copy / "sparse").open("rb") as file:
        file.seek(1 << 30)
        assert file.read(6) == b"middle"


def test_extended_attributes_of_users_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    try:
        os.setxattr(source / "file", "user.note", b"kept")
    except OSError:
        pytest.skip("this file system keeps no attributes of users")
    copy = copied(source, tmp_path)
    assert os.getxattr(copy / "file", "user.note") == b"kept"


@pytest.mark.skipif(not ROOT, reason="file capabilities are root's to set")
def test_capabilities_of_files_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "ping").touch()
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(source / "ping", "security.capability", capability)
    copy = copied(source, tmp_path)
    assert os.getxattr(copy / "ping", "security.capability") == capability


def test_many_levels_need_no_more_descriptors(tmp_path: Path) -> None:
    source = tmp_path / "source"
    deepest = source / "/".join("d" * 700)
    deepest.mkdir(parents=True)
    (deepest / "end").write_text("x")
    assert (copied(source, tmp_path) / deepest.relative_to(source) / "end").read_text() == "x"
