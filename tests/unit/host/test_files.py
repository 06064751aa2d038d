from __future__ import annotations

import errno
import json
import os
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri_shim.host.files import (
    make_dirs_in_root,
    memory_file,
    open_in_root,
    read_bounded,
    read_in_root,
    size_in_root,
    write_atomic,
    write_new,
    write_over,
)

MINE = {"uid": os.getuid(), "gid": os.getgid()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_bytes(b"inside")
    return root


# write_atomic


@pytest.mark.parametrize("fsync", [False, True])
def test_file_is_written_with_exact_bytes_and_mode(tmp_path: Path, fsync: bool) -> None:
    umask = os.umask(0o077)
    try:
        write_atomic(tmp_path / "a", b"one", mode=0o644, fsync=fsync)
    finally:
        os.umask(umask)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    write_atomic(tmp_path / "a", b"two", fsync=fsync)
    assert (tmp_path / "a").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a"]


def test_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    with (tmp_path / "a").open("rb") as old:
        write_atomic(tmp_path / "a", b"new")
        assert old.read() == b"old"


def test_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"keep")
    (tmp_path / "a").symlink_to("target")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "target").read_bytes() == b"keep"
    assert not (tmp_path / "a").is_symlink()


def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a", b"old")

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none" / "a", b"")


# read_bounded


def test_a_file_in_memory_is_read_from_its_beginning() -> None:
    fd = memory_file(b"x" * 100_000)
    try:
        assert os.read(fd, 1 << 20) == b"x" * 100_000
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


# write_over


def test_small_content_takes_the_old_ones_place_in_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    file.write_bytes(b'{"reason": "a long one"}')
    inode = file.stat().st_ino
    write_over(file, b'{"reason": ""}')
    assert json.loads(file.read_bytes()) == {"reason": ""}
    assert file.stat().st_ino == inode
    write_over(file, b'{"reason": "%s"}' % (b"x" * 4000))
    assert json.loads(file.read_bytes()) == {"reason": "x" * 4000}
    assert file.stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("before", [None, b"x" * 4097, b"{}"])
def test_what_does_not_fit_a_page_or_is_not_there_is_written_by_rename(
    tmp_path: Path, before: bytes | None
) -> None:
    file = tmp_path / "status.json"
    if before is not None:
        file.write_bytes(before)
    inode = file.stat().st_ino if before is not None else 0
    content = b'{"reason": "%s"}' % (b"x" * 4096)
    write_over(file, content)
    assert file.read_bytes() == content
    assert file.stat().st_ino != inode
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_file_of_ours_is_not_written_over(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "directory").mkdir()
    for name in ("link", "directory"):
        with pytest.raises(OSError, match=name):
            write_over(tmp_path / name, b"{}")
    assert other.read_bytes() == b"mine"


def test_a_killed_process_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    """A child writes two contents by turns until it is killed, at another moment each time."""
    file = tmp_path / "status.json"
    contents = [b'{"a": "%s"}' % (letter * size) for letter, size in ((b"x", 40), (b"y", 3000))]
    file.write_bytes(contents[0])
    for number in range(20):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(told, b".")
                for content in contents * 100_000:
                    write_over(file, content)
            finally:
                os._exit(0)
        os.read(ready, 1)
        for _ in range(number * 50):
            file.read_bytes()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)
        assert file.read_bytes().rstrip() in contents


def test_file_is_read_up_to_the_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="larger than the limit of 4 bytes") as caught:
        read_bounded(tmp_path / "a", 4)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "a")


def test_files_of_proc_are_read_whole() -> None:
    assert read_bounded(Path("/proc/self/stat"), 4096).startswith(str(os.getpid()).encode())


def test_fifo_and_device_and_directory_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path / "fifo", Path("/dev/null"), tmp_path):
        with pytest.raises(OSError, match="not a regular file") as caught:
            read_bounded(name, 10)
        assert caught.value.errno == errno.EINVAL


# inside a root


@pytest.mark.parametrize(
    "path", ["etc/passwd", "/etc/passwd", "../etc/passwd", "/../../etc/./passwd"]
)
def test_every_way_of_writing_a_path_stays_inside(root: Path, path: str) -> None:
    assert read_in_root(root, path, 100) == b"inside"


@pytest.mark.parametrize("target", ["../../outside", "/../outside", "{outside}", "/outside"])
def test_link_that_points_out_leads_nowhere(root: Path, target: str) -> None:
    (root / "link").symlink_to(target.format(outside=root.parent / "outside"))
    assert read_in_root(root, "link", 100) is None


def test_size_is_told_without_opening(root: Path) -> None:
    assert size_in_root(root, "etc/passwd") == len(b"inside")
    assert size_in_root(root, "etc/none") is None
    assert size_in_root(root, "etc/passwd/none") is None
    os.mkfifo(root / "fifo")
    assert size_in_root(root, "fifo") == 0


def test_absolute_link_is_resolved_inside(root: Path) -> None:
    (root / "var").mkdir()
    (root / "var/lib").symlink_to("/etc")
    assert read_in_root(root, "var/lib/passwd", 100) == b"inside"


def test_root_may_be_a_descriptor(root: Path) -> None:
    fd = os.open(root, os.O_PATH)
    assert read_in_root(fd, "/etc/passwd", 100) == b"inside"
    os.close(fd)


def test_missing_file_is_none_and_hostile_one_an_error(root: Path) -> None:
    assert read_in_root(root, "etc/none", 10) is None
    assert read_in_root(root, "etc/passwd/none", 10) is None
    (root / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        read_in_root(root, "loop", 10)
    os.mkfifo(root / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        read_in_root(root, "fifo", 10)
    with pytest.raises(OSError, match="larger than the limit of 3 bytes"):
        read_in_root(root, "etc/passwd", 3)


def test_file_is_created_inside(root: Path) -> None:
    (root / "link").symlink_to("/made")
    fd = open_in_root(root, "link", os.O_WRONLY | os.O_CREAT, mode=0o640)
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert (root / "made").exists()
    assert sorted(os.listdir(root.parent)) == ["outside", "root"]


def test_magic_links_are_refused(root: Path) -> None:
    with pytest.raises(OSError, match="self/root"):
        open_in_root(Path("/"), "/proc/self/root", os.O_PATH)


# make_dirs_in_root


def test_missing_directories_get_mode_and_the_present_keep_theirs(root: Path) -> None:
    (root / "etc").chmod(0o711)
    umask = os.umask(0o077)
    try:
        make_dirs_in_root(root, "/etc/one/two", mode=0o775, **MINE)
        make_dirs_in_root(root, "/etc/one/two", mode=0o700, **MINE)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o711
    assert stat.S_IMODE((root / "etc/one").stat().st_mode) == 0o775
    assert stat.S_IMODE((root / "etc/one/two").stat().st_mode) == 0o775


def test_directories_are_made_where_links_lead_inside(root: Path) -> None:
    (root / "run").mkdir()
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "etc/up").symlink_to("../../../..")
    make_dirs_in_root(root, "/var/run/secrets/kubernetes.io", **MINE)
    make_dirs_in_root(root, "/etc/up/top", **MINE)
    assert (root / "run/secrets/kubernetes.io").is_dir()
    assert (root / "top").is_dir()
    assert sorted(os.listdir(root.parent)) == ["outside", "root"]


def test_dots_in_the_path_are_text(root: Path) -> None:
    make_dirs_in_root(root, "../a/none/../b/./c/", **MINE)
    assert (root / "a/b/c").is_dir()
    assert not (root / "a/none").exists()
    make_dirs_in_root(root, "/", **MINE)
    make_dirs_in_root(root, "", **MINE)


def test_file_and_dangling_link_are_in_the_way(root: Path) -> None:
    with pytest.raises(NotADirectoryError):
        make_dirs_in_root(root, "/etc/passwd/x", **MINE)
    (root / "dangling").symlink_to("/nowhere")
    with pytest.raises(FileExistsError, match="dangling"):
        make_dirs_in_root(root, "/dangling/x", **MINE)
    assert not (root / "nowhere").exists()


NAMES = st.sampled_from(["a", "b", "..", ".", "", "link", "up", "out"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(NAMES, max_size=6), absolute=st.booleans())
def test_no_path_whatever_makes_a_thing_outside(
    tmp_path: Path, parts: list[str], absolute: bool
) -> None:
    root = tmp_path / "fuzz" / "root"
    if not root.exists():
        root.mkdir(parents=True)
        (root / "a").mkdir()
        (root / "link").symlink_to("/a/b")
        (root / "up").symlink_to("../../..")
        (root / "out").symlink_to(tmp_path)
    try:
        make_dirs_in_root(root, ("/" if absolute else "") + "/".join(parts), **MINE)
    except OSError:
        pass
    assert os.listdir(tmp_path / "fuzz") == ["root"]
    assert os.listdir(tmp_path) == ["fuzz"]


def test_a_new_file_is_written_whole_and_replaces_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_new(file, b"words", mode=0o640)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"words", 0o640)
    with pytest.raises(FileExistsError):
        write_new(file, b"other words")
    assert file.read_bytes() == b"words"
