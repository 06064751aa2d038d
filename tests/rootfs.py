"""A root file system as a container sees it: an image's layers mounted, and every name in them looked at."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cri_shim.host.mounts import mount_overlay, unmount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cri_shim.image.model import LayerStack

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
}
GHOST = ("listed, but not there",)
"""Of a name that a listing has and nobody can look at: a whiteout that shows."""


@contextmanager
def mounted(stack: LayerStack, work: Path) -> Iterator[Path]:
    """The layers as a container has them, below an empty writable layer, all in the directory `work`."""
    target, upper, working = (work / name for name in ("root", "upper", "work"))
    for directory in (target, upper, working):
        directory.mkdir()
    mount_overlay(
        target, layers_dir=stack.layers_dir, lowers=stack.lowers, upper=upper, work=working
    )
    try:
        yield target
    finally:
        unmount(target)


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below `root` that a container could notice, in the form of `oci_layers.Tree.facts`."""
    first: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    todo = [b""]
    top = os.fsencode(root)
    while todo:
        directory = todo.pop()
        for base in os.listdir(os.path.join(top, directory)):
            path = os.path.join(directory, base)
            try:
                info = os.lstat(os.path.join(top, path))
            except FileNotFoundError:
                found[os.fsdecode(path)] = GHOST
                continue
            found[os.fsdecode(path)] = _facts(os.path.join(top, path), info)
            if stat.S_ISDIR(info.st_mode):
                todo.append(path)
    numbered = {}
    for name in sorted(found, key=lambda each: each.split("/")):
        *fact, inode = found[name]
        numbered[name] = (*fact, first.setdefault(inode, name)) if fact else GHOST  # type: ignore[arg-type]
    return numbered


def _facts(path: bytes, info: os.stat_result) -> tuple[object, ...]:
    kind = _KINDS[stat.S_IFMT(info.st_mode)]
    data: bytes | str | tuple[int, int] = b""
    if kind == "file":
        with open(path, "rb") as file:
            data = file.read()
    elif kind == "link":
        data = os.fsdecode(os.readlink(path))
    elif kind.endswith("device"):
        data = (os.major(info.st_rdev), os.minor(info.st_rdev))
    names = [] if kind == "link" else os.listxattr(path)
    xattrs = tuple(
        sorted(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in names
            if name.startswith(("user.", "security.capability"))
        )
    )
    return (
        *(kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid),
        *(info.st_mtime_ns / 1e9, data, xattrs, info.st_ino),
    )
