"""Recorded nodes: the files that the checks read, as a tree below a directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.cli.checks.row import Node

if TYPE_CHECKING:
    from pathlib import Path


def plant(root: Path, files: dict[str, str]) -> Node:
    """A node with these files; a name that ends in / is an empty directory."""
    for name, text in files.items():
        path = root / name.lstrip("/")
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return Node(root)


def mountinfo(*mounts: tuple[str, str, str]) -> str:
    """Lines of /proc/self/mountinfo from (mount point, type, options of the file system)."""
    return "".join(
        f"{30 + n} 20 0:{n + 40} / {point} rw,relatime shared:{n} - {kind} {kind} {options}\n"
        for n, (point, kind, options) in enumerate(mounts)
    )


V1 = [
    (f"/sys/fs/cgroup/{name}", "cgroup", f"rw,{name}")
    for name in ("cpu", "cpuset", "memory", "devices", "pids", "freezer", "blkio")
]


def hybrid(root: Path, *, on_v2: str) -> Node:
    """A node with v1 controllers and a v2 mount that holds `on_v2`."""
    return plant(
        root,
        {
            "/proc/self/mountinfo": mountinfo(*V1, ("/sys/fs/cgroup/unified", "cgroup2", "rw")),
            "/sys/fs/cgroup/unified/cgroup.controllers": on_v2,
        },
    )
