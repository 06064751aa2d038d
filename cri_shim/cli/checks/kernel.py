"""The kernel: its version, the calls and namespaces that pods are made of, overlayfs."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.cli.checks.row import Node, Row, failed, nearest_existing, ok, version_text, warning
from cri_shim.errors import CriShimError
from cri_shim.host import mounts, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_KERNEL = (5, 6)
"""openat2(2), without which no path inside a container's file system can be resolved safely."""

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")

RESOLVE_IN_ROOT = 0x10  # linux/openat2.h


def kernel_version(node: Node) -> Row:
    """Whether the kernel is new enough; distributions backport, so `kernel_calls` has the last word."""
    release = node.read("/proc/sys/kernel/osrelease") or ""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        return failed("kernel", f"unknown version {release!r}", "mount /proc")
    if (int(match[1]), int(match[2])) < MIN_KERNEL:
        least = version_text(MIN_KERNEL)
        return warning(
            "kernel", f"Linux {release}, older than {least}", f"use Linux {least} or newer"
        )
    return ok("kernel", f"Linux {release}")


def kernel_calls() -> Row:
    """Calls the daemon can't work without, each tried."""
    missing = [name for name, call in _CALLS.items() if not _is_there(call)]
    if missing:
        return failed(
            "kernel calls",
            f"missing or forbidden: {', '.join(missing)}",
            f"use Linux {version_text(MIN_KERNEL)} or newer, and no seccomp profile around the daemon "
            "that forbids them",
        )
    return ok("kernel calls", ", ".join(_CALLS))


def mount_api() -> Row:
    """mount_setattr(2): recursive read-only mounts can't be made without."""
    name = "mount_setattr"
    # Descriptor -1 and an empty path: a kernel that knows the call complains about those.
    if not _is_there(lambda: syscalls.mount_setattr(-1, "", 0)):
        return warning(
            name,
            "missing: recursive read-only mounts of pods are refused",
            "use Linux 5.12 or newer",
        )
    return ok(name, "recursive read-only mounts work")


def _open_beneath_root() -> None:
    os.close(syscalls.openat2(-100, "/", os.O_PATH, resolve=RESOLVE_IN_ROOT))


def _open_own_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


_CALLS: dict[str, Callable[[], None]] = {
    "openat2": _open_beneath_root,
    "pidfd_open": _open_own_pidfd,
}


def _is_there(call: Callable[[], None]) -> bool:
    try:
        call()
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    return True


def namespaces(node: Node) -> Row:
    """The namespaces that every pod uses."""
    have = node.names("/proc/self/ns")
    missing = [name for name in NAMESPACES if name not in have]
    if missing:
        return failed(
            "namespaces",
            f"this kernel lacks: {', '.join(missing)}",
            "use a kernel with CONFIG_NAMESPACES and all its kinds",
        )
    return ok("namespaces", ", ".join(NAMESPACES))


def user_namespaces(node: Node) -> Row:
    """User namespaces: only pods with hostUsers=false need them."""
    name = "user namespaces"
    limit = node.read("/proc/sys/user/max_user_namespaces")
    if "user" not in node.names("/proc/self/ns") or limit is None:
        return warning(
            name,
            "this kernel has none: pods with hostUsers=false are refused",
            "use a kernel with CONFIG_USER_NS",
        )
    if limit == "0":
        return warning(
            name,
            "switched off: pods with hostUsers=false are refused",
            "sysctl -w user.max_user_namespaces=15000",
        )
    return ok(name, f"up to {limit}")


def overlayfs(root_dir: Path) -> Row:
    """An overlay really mounted on the file system where images will be, and taken away again."""
    parent = nearest_existing(root_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".cri-shim-check-", dir=parent) as scratch:
            return _try_overlay(Path(scratch), parent)
    except OSError as error:
        return failed(
            "overlayfs",
            f"{parent} can't be written to: {error.strerror}",
            "run this as root, or choose another root directory",
        )


def _try_overlay(scratch: Path, parent: Path) -> Row:
    for name in ("lower", "base", "upper", "work", "merged"):
        (scratch / name).mkdir()
    (scratch / "base" / "probe").write_text("probe")
    merged = scratch / "merged"
    try:
        mounts.mount_overlay(
            merged,
            layers_dir=scratch,
            lowers=["lower", "base"],
            upper=scratch / "upper",
            work=scratch / "work",
        )
    except (OSError, CriShimError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.errno == errno.EPERM:
            remedy = "run this as root; in a container, give it CAP_SYS_ADMIN"
        elif isinstance(error, OSError) and error.errno == errno.ENODEV:
            remedy = "modprobe overlay"
        else:
            remedy = "put root on ext4 or xfs (made with ftype=1), not on another overlay or a network file system"
        return failed("overlayfs", f"can't be mounted on {parent}: {why}", remedy)
    try:
        # Removing a lower file makes a whiteout in upper: what a file system without them can't do.
        (merged / "probe").unlink()
    except OSError as error:
        return failed(
            "overlayfs",
            f"is mounted on {parent}, but files can't be removed in it: {error.strerror}",
            "put root on ext4 or xfs",
        )
    finally:
        mounts.unmount(merged)
    return ok("overlayfs", f"mounted and unmounted on {parent}")
