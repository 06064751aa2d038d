"""Checks the node's resources: disk space, writable directories, sysctls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cri_shim.cli.checks.row import Node, Row, failed, nearest_existing, ok, warning

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
MIN_FREE_BYTES = GIB
MIN_FREE_INODES = 10_000
WARN_FREE_SHARE = 0.10
"""The kubelet's default eviction threshold for nodefs: below it the node reports DiskPressure and evicts pods."""


def disk_space(root_dir: Path) -> Row:
    """Free bytes and inodes for images and writable layers."""
    place = nearest_existing(root_dir)
    try:
        usage = os.statvfs(place)
    except OSError as error:
        return failed("disk", f"statfs of {place}: {error.strerror}", "check the file system")
    free, total = usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize
    return rate_disk(
        place, free=free, total=total, free_inodes=usage.f_favail, total_inodes=usage.f_files
    )


def rate_disk(place: Path, *, free: int, total: int, free_inodes: int, total_inodes: int) -> Row:
    """The row for a file system with this many bytes and inodes. Some file systems have no inode count (0)."""
    says = f"{place}: {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    inodes = f", {free_inodes} of {total_inodes} inodes" if total_inodes else ""
    remedy = "make room, or set root to another file system"
    if free < MIN_FREE_BYTES:
        return failed("disk", says + inodes, remedy)
    if total_inodes and free_inodes < MIN_FREE_INODES:
        return failed("disk", says + inodes, remedy)
    if free < total * WARN_FREE_SHARE or free_inodes < total_inodes * WARN_FREE_SHARE:
        return warning(
            "disk", f"{says}{inodes}: less than a tenth, so the kubelet will evict pods", remedy
        )
    return ok("disk", says + inodes)


def directories(root_dir: Path, state_dir: Path) -> Row:
    """Whether the daemon can create its directories."""
    for key, path in (("root", root_dir), ("state", state_dir)):
        place = nearest_existing(path)
        if not place.is_dir():
            return failed(
                "directories", f"{key}: {place} is not a directory", f"remove it, or set {key}"
            )
        if not os.access(place, os.W_OK | os.X_OK):
            return failed(
                "directories",
                f"{key}: {place} is not writable",
                f"run this as root, or set {key} to a writable directory",
            )
    return ok("directories", f"{root_dir}, {state_dir}")


class Sysctl(NamedTuple):
    """A sysctl with its recommended minimum, and what fails below it."""

    name: str
    minimum: int
    cost: str
    module: str = ""
    """The kernel module that has the sysctl."""


SYSCTLS = (
    Sysctl("net.ipv4.ip_forward", 1, "pods reach neither other nodes nor the internet"),
    Sysctl(
        "net.bridge.bridge-nf-call-iptables",
        1,
        "Services don't work between pods of one bridge",
        "br_netfilter",
    ),
    Sysctl(
        "fs.inotify.max_user_instances", 512, "kubelet and pods that watch files run out of watches"
    ),
    Sysctl("fs.inotify.max_user_watches", 65_536, "pods that watch many files fail"),
)

KUBELET_SYSCTLS = {"vm.overcommit_memory": "1", "kernel.panic": "10", "kernel.panic_on_oops": "1"}
"""Sysctls that the kubelet sets itself, unless it runs with protectKernelDefaults."""


def sysctls(node: Node) -> list[Row]:
    """A row for each sysctl that networks and the kubelet need."""
    return [*(_sysctl_row(node, wish) for wish in SYSCTLS), _kubelet_row(node)]


def _sysctl_row(node: Node, wish: Sysctl) -> Row:
    name = f"sysctl {wish.name}"
    text = _sysctl(node, wish.name)
    setting = (
        f"sysctl -w {wish.name}={wish.minimum}, and the same in /etc/sysctl.d/99-cri-shim.conf"
    )
    if text is None:
        module = f"modprobe {wish.module} && " if wish.module else ""
        return warning(name, f"is missing: {wish.cost}", module + setting)
    if not text.isdigit() or int(text) < wish.minimum:
        return warning(name, f"is {text}, less than {wish.minimum}: {wish.cost}", setting)
    return ok(name, text)


def _kubelet_row(node: Node) -> Row:
    values = {name: _sysctl(node, name) for name in KUBELET_SYSCTLS}
    other = [
        f"{n}={KUBELET_SYSCTLS[n]}" for n, value in values.items() if value != KUBELET_SYSCTLS[n]
    ]
    if not other:
        return ok("sysctls of kubelet", "set as the kubelet expects")
    return ok(
        "sysctls of kubelet",
        f"the kubelet sets {', '.join(other)} at its start (with protectKernelDefaults set them yourself)",
    )


def _sysctl(node: Node, name: str) -> str | None:
    return node.read("/proc/sys/" + name.replace(".", "/"))
