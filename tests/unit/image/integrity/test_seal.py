"""A seal: the same for the same tree, another for any other that a container could tell from it."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from cri_shim.host.tree import remove_tree
from cri_shim.image.integrity.seal import seal_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def quiet(_: int) -> None:
    """Nobody listens."""


def tree(root: Path) -> Path:
    """A small one with one of each kind that needs no rights to make."""
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_bytes(b"root:x:0:0\n")
    (root / "etc/empty").touch()
    os.link(root / "etc/passwd", root / "second-name")
    (root / "link").symlink_to("etc/passwd")
    os.mkfifo(root / "fifo")
    (root / "deep/er").mkdir(parents=True)
    (root / "deep/er/file").write_bytes(b"x" * 3_000_000)
    (root / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"1")
    for path in root.rglob("*"):
        os.utime(path, ns=(7, 7), follow_symlinks=False)
    return root


def test_the_same_tree_has_the_same_seal_wherever_it_is(tmp_path: Path) -> None:
    first = seal_of(tree(tmp_path / "a"), quiet)
    assert first == seal_of(tree(tmp_path / "b"), quiet)
    assert first.startswith("sha256:")


def test_when_it_was_unpacked_and_read_does_not_count(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    before = seal_of(root, quiet)
    os.utime(root / "deep", (time.time(), time.time()))
    (root / "etc/passwd").read_bytes()
    assert seal_of(root, quiet) == before


def _make_dir_where_a_file_was(root: Path) -> None:
    (root / "etc/empty").unlink()
    (root / "etc/empty").mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: _rewrite(root / "etc/passwd", b"root:x:1:0\n"),
    "content in the middle": lambda root: _poke(root / "deep/er/file", 1_500_000),
    "size": lambda root: _rewrite(root / "deep/er/file", b"x" * 2_999_999),
    "time": lambda root: os.utime(root / "etc/passwd", ns=(7, 8)),
    "mode": lambda root: (root / "etc/passwd").chmod(0o4755),
    "mode of a directory": lambda root: (root / "deep").chmod(0o1777),
    "mode of the root": lambda root: root.chmod(0o700),
    "a name more": lambda root: (root / "deep/new").touch(),
    "a name less": lambda root: (root / "etc/empty").unlink(),
    "another name": lambda root: (root / "deep").rename(root / "deeq"),
    "moved down": lambda root: (root / "fifo").rename(root / "deep/fifo"),
    "kind": _make_dir_where_a_file_was,
    "link target": lambda root: _relink(root / "link", "etc/shadow"),
    "one inode less": lambda root: _copy_over(root / "second-name"),
    "user attribute": lambda root: os.setxattr(root / "etc", "user.kind", b"p"),
}


def _rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(7, 7))


def _poke(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"y")
    os.utime(path, ns=(7, 7))


def _relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)
    os.utime(path, ns=(7, 7), follow_symlinks=False)


def _copy_over(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_breaks_the_seal(tmp_path: Path, change: str) -> None:
    root = tree(tmp_path / "a")
    before = seal_of(root, quiet)
    CHANGES[change](root)
    assert seal_of(root, quiet) != before


def test_neither_depth_nor_links_lead_it_astray(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").write_text("secret")
    (root / "out").symlink_to("../outside")
    (root / "loop").symlink_to("loop")
    start = os.open(root, os.O_RDONLY)
    fd = start
    for _ in range(3000):  # deeper than a path may be long
        os.mkdir("a-directory-name", dir_fd=fd)
        below = os.open("a-directory-name", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    before = seal_of(root, quiet)
    (tmp_path / "outside").write_text("changed")
    assert seal_of(root, quiet) == before
    remove_tree(root)  # nobody else can: it is deeper than Python's own removal goes


def test_it_tells_what_it_has_read(tmp_path: Path) -> None:
    told: list[int] = []
    seal_of(tree(tmp_path / "a"), told.append)
    assert sum(told) == 3_000_000 + len(b"root:x:0:0\n") + 1


def test_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        seal_of(tmp_path / "absent", quiet)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        seal_of(tmp_path / "file", quiet)
