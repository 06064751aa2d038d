"""Mounts, and the trees around them, on the real kernel; needs root."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import ResourceExhaustedError
from cri_shim.host.files import disk_usage, read_in_root, remove_tree
from cri_shim.host.mounts import (
    bind,
    can_map_ids,
    has_mount_setattr,
    mount_overlay,
    mount_tmpfs,
    unmount,
    unmount_below,
)
from tests.harness.mount_points import mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert mounts_below(tmp_path) == []


class Overlay:
    """Directories of one overlay."""

    def __init__(self, place: Path, names: list[str]) -> None:
        self.layers_dir = place / "layers"
        self.upper, self.work, self.target = place / "upper", place / "work", place / "rootfs"
        for directory in (self.layers_dir, self.upper, self.work, self.target):
            directory.mkdir()
        self.names = names
        for name in names:
            (self.layers_dir / name).mkdir()
            (self.layers_dir / name / "top").write_text(name)
            (self.layers_dir / name / f"only-{name.replace('/', '_')}").touch()

    def mount(self) -> None:
        mount_overlay(
            self.target,
            layers_dir=self.layers_dir,
            lowers=self.names,
            upper=self.upper,
            work=self.work,
        )

    def mount_read_only(self) -> None:
        mount_overlay(
            self.target, layers_dir=self.layers_dir, lowers=self.names, upper=None, work=None
        )


def test_overlay_of_60_layers_shows_the_top_and_stores_writes_above(place: Path) -> None:
    overlay = Overlay(place, [f"{number:026x}" for number in range(60)])
    here = os.getcwd()
    overlay.mount()
    assert os.getcwd() == here
    assert len(os.listdir(overlay.target)) == 61
    assert (overlay.target / "top").read_text() == overlay.names[0]
    (overlay.target / "new").write_text("x")
    (overlay.target / f"only-{overlay.names[59]}").unlink()
    assert sorted(os.listdir(overlay.upper)) == ["new", f"only-{overlay.names[59]}"]
    assert stat.S_ISCHR((overlay.upper / f"only-{overlay.names[59]}").lstat().st_mode)
    unmount(overlay.target)
    assert os.listdir(overlay.target) == []
    unmount(overlay.target)


def test_layer_named_twice_mounts(place: Path) -> None:
    overlay = Overlay(place, ["a", "b"])
    overlay.names = ["a", "b", "a"]
    overlay.mount()
    assert (overlay.target / "top").read_text() == "a"
    unmount(overlay.target)


def test_names_with_separators_mount(place: Path) -> None:
    odd = place / "a,b:c\\d"
    odd.mkdir()
    overlay = Overlay(odd, ["x,y", "z:w", "v\\u", "two/parts"][:3])
    overlay.mount()
    assert len(os.listdir(overlay.target)) == 4
    assert mounts_below(odd) == [overlay.target]
    unmount_below(odd)


@pytest.mark.parametrize("layers", [1, 2])
def test_overlay_without_upper_is_read_only(place: Path, layers: int) -> None:
    overlay = Overlay(place, ["a", "b"][:layers])
    overlay.mount_read_only()
    assert (overlay.target / "top").read_text() == "a"
    with pytest.raises(OSError, match="Read-only file system"):
        (overlay.target / "new").touch()
    unmount(overlay.target)
    (overlay.layers_dir / "a/still-writable").touch()


def test_too_many_layers_mount_nothing(place: Path) -> None:
    overlay = Overlay(place, [f"{number:064x}" for number in range(64)])
    with pytest.raises(ResourceExhaustedError, match="64 layers"):
        overlay.mount()


def test_missing_layer_is_the_kernels_error_with_the_target(place: Path) -> None:
    overlay = Overlay(place, ["a"])
    overlay.names.append("none")
    with pytest.raises(FileNotFoundError) as caught:
        overlay.mount()
    assert caught.value.filename == str(overlay.target)


@pytest.mark.asyncio
async def test_overlays_mount_side_by_side(place: Path) -> None:
    overlays = []
    for number in range(10):
        (place / f"{number}").mkdir()
        overlays.append(Overlay(place / f"{number}", [f"l{number}", f"m{number}"]))
    await asyncio.gather(*(asyncio.to_thread(overlay.mount) for overlay in overlays))
    for number, overlay in enumerate(overlays):
        assert (overlay.target / "top").read_text() == f"l{number}"
    unmount_below(place)


def test_bind_is_writable_unless_read_only(place: Path) -> None:
    source, target = place / "source", place / "target"
    source.mkdir()
    target.mkdir()
    bind(source, target)
    (target / "a").touch()
    assert (source / "a").exists()
    unmount(target)
    bind(source, target, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "b").touch()
    (source / "b").touch()
    unmount(target)


def test_recursive_read_only_bind_covers_what_is_mounted_below(place: Path) -> None:
    source, target = place / "source", place / "target"
    (source / "tmp").mkdir(parents=True)
    target.mkdir()
    mount_tmpfs(source / "tmp", size_bytes=1 << 20)
    bind(source, target, readonly=True, recursive=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "tmp/a").touch()
    (source / "tmp/a").touch()
    assert mounts_below(place) == [source / "tmp", target / "tmp", target]
    unmount_below(place)


def test_tmpfs_has_its_size_and_mode_and_runs_nothing(place: Path) -> None:
    target = place / "shm"
    target.mkdir()
    mount_tmpfs(target, size_bytes=1 << 20, mode=0o1770)
    found = os.statvfs(target)
    assert found.f_blocks * found.f_frsize == 1 << 20
    assert stat.S_IMODE(target.stat().st_mode) == 0o1770
    assert found.f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC) == (
        os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    )
    unmount(target)


def test_unmount_takes_all_that_is_stacked_and_what_is_busy(place: Path) -> None:
    target = place / "busy mount"
    target.mkdir()
    for _ in range(3):
        mount_tmpfs(target)
    with (target / "open").open("w") as user:
        unmount(target)
        user.write("still works")
    assert os.listdir(target) == []


def test_link_to_a_mount_point_is_not_followed_by_unmount(place: Path) -> None:
    target = place / "real"
    target.mkdir()
    mount_tmpfs(target)
    (place / "link").symlink_to(target)
    unmount(place / "link")
    assert mounts_below(place) == [target]
    unmount(target)


@pytest.mark.parametrize("kind", ["tmpfs", "bind of the same file system", "bound file", "itself"])
def test_removal_never_enters_a_mount_point(place: Path, kind: str) -> None:
    kept = place / "kept"
    (kept / "sub").mkdir(parents=True)
    (kept / "file").write_text("precious")
    top = place / "top"
    point = top if kind == "itself" else top / "a/point"
    if kind == "bound file":
        point.parent.mkdir(parents=True)
        point.touch()
        bind(kept / "file", point)
    else:
        point.mkdir(parents=True)
        mount_tmpfs(point) if kind == "tmpfs" else bind(kept, point)
    with pytest.raises(OSError, match="top") as caught:
        remove_tree(top)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == str(point)
    unmount(point)
    remove_tree(top)
    assert not top.exists()
    assert (kept / "file").read_text() == "precious"
    assert (kept / "sub").is_dir()


def test_usage_stops_at_mount_points(place: Path) -> None:
    (place / "top/point").mkdir(parents=True)
    (place / "big").mkdir()
    (place / "big/file").write_bytes(bytes(1 << 20))
    bind(place / "big", place / "top/point")
    usage = disk_usage(place / "top")
    unmount(place / "top/point")
    assert usage.inodes == 1
    assert usage.used_bytes < 1 << 20


def test_device_in_a_root_is_not_opened(place: Path) -> None:
    os.mknod(place / "passwd", stat.S_IFCHR | 0o666, os.makedev(10, 130))  # /dev/watchdog
    with pytest.raises(OSError, match="not a regular file"):
        read_in_root(place, "/passwd", 100)


# --- ID-mapped ---------------------------------------------------------------------------------------------------


@pytest.fixture
def userns_fd() -> Iterator[int]:
    """A user namespace whose users are 200000 and on."""
    argv = ["unshare", "--user", "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 200000 65536")
        fd = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        process.kill()
    yield fd
    os.close(fd)


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("names", [["b", "a"], ["a"]])
def test_layers_belong_to_the_users_of_a_namespace_and_stay_as_they_were(
    place: Path, userns_fd: int, names: list[str], *, writable: bool
) -> None:
    overlay = Overlay(place, names)
    lowest = overlay.layers_dir / "a"
    os.chown(lowest / "only-a", 7, 8)
    if writable:
        os.chown(overlay.upper, 200_000, 200_000)
    mount_overlay(
        overlay.target,
        layers_dir=overlay.layers_dir,
        lowers=names,
        upper=overlay.upper if writable else None,
        work=overlay.work if writable else None,
        userns_fd=userns_fd,
    )
    try:
        seen = (overlay.target / "only-a").stat()
        assert (seen.st_uid, seen.st_gid) == (200_007, 200_008)
        assert overlay.target.stat().st_uid == 200_000
        assert (overlay.target / "top").read_text() == names[0]
        assert mounts_below(place) == [overlay.target], "the clones are gone"
        if writable:
            (overlay.target / "only-a").chmod(0o600)
            copied = (overlay.upper / "only-a").stat()
            assert (copied.st_uid, copied.st_gid) == (200_007, 200_008)
        else:
            with pytest.raises(OSError, match="Read-only"):
                (overlay.target / "new").touch()
    finally:
        unmount(overlay.target)
    kept = (lowest / "only-a").stat()
    assert (kept.st_uid, kept.st_gid) == (7, 8)


def test_mapped_overlay_that_fails_leaves_no_mount(place: Path, userns_fd: int) -> None:
    overlay = Overlay(place, ["b", "a"])
    overlay.work.rmdir()
    with pytest.raises(OSError, match="No such file"):
        mount_overlay(
            overlay.target,
            layers_dir=overlay.layers_dir,
            lowers=overlay.names,
            upper=overlay.upper,
            work=overlay.work,
            userns_fd=userns_fd,
        )


def test_what_can_be_mapped_is_tried(place: Path, userns_fd: int) -> None:
    assert can_map_ids(place, userns_fd)
    assert not can_map_ids(place / "nowhere", userns_fd)
    assert not can_map_ids(Path("/proc"), userns_fd)
    assert has_mount_setattr()
