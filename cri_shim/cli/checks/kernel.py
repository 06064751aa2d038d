"""Checks the kernel: version, system calls, namespaces, overlayfs."""

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
"""The first with openat2(2), which is needed to resolve paths in a container's file system safely."""

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")

RESOLVE_IN_ROOT = 0x10  # linux/openat2.h


def kernel_version(node: Node) -> Row:
    """Whether the kernel is new enough. Only a warning: distributions backport, and `kernel_calls` tries the calls."""
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
    """Try the system calls that the daemon requires."""
    missing = [name for name, call in CALLS.items() if not _is_there(call)]
    if missing:
        return failed(
            "kernel calls",
            f"missing or forbidden: {', '.join(missing)}",
            f"use Linux {version_text(MIN_KERNEL)} or newer, and allow them in a seccomp profile around the daemon",
        )
    return ok("kernel calls", ", ".join(CALLS))


def mount_api() -> Row:
    """Try mount_setattr(2), which recursive read-only mounts need."""
    name = "mount_setattr"
    # A kernel with the call fails with EBADF or ENOENT for these arguments, one without it with ENOSYS.
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


CALLS: dict[str, Callable[[], None]] = {
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
    """Whether the kernel has the namespaces that every pod uses."""
    have = node.names("/proc/self/ns")
    missing = [name for name in NAMESPACES if name not in have]
    if missing:
        return failed(
            "namespaces",
            f"this kernel lacks: {', '.join(missing)}",
            "use a kernel with CONFIG_NAMESPACES and all its namespaces",
        )
    return ok("namespaces", ", ".join(NAMESPACES))


def user_namespaces(node: Node) -> Row:
    """Whether the kernel has user namespaces, which only pods with hostUsers=false need."""
    name = "user namespaces"
    limit = node.read("/proc/sys/user/max_user_namespaces")
    if "user" not in node.names("/proc/self/ns") or limit is None:
        return warning(
            name,
            "not in this kernel: pods with hostUsers=false are refused",
            "use a kernel with CONFIG_USER_NS",
        )
    if limit == "0":
        return warning(
            name,
            "disabled: pods with hostUsers=false are refused",
            "sysctl -w user.max_user_namespaces=15000",
        )
    return ok(name, f"up to {limit}")


def overlayfs(root_dir: Path) -> Row:
    """Mount an overlay on the file system of images, and unmount it again."""
    parent = nearest_existing(root_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".cri-shim-check-", dir=parent) as scratch:
            return _try_overlay(Path(scratch), parent)
    except OSError as error:
        return failed(
            "overlayfs",
            f"cannot write to {parent}: {error.strerror}",
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
        return failed("overlayfs", f"cannot be mounted on {parent}: {why}", remedy)
    try:
        # Removing a lower file creates a whiteout in upper, which some file systems do not support.
        (merged / "probe").unlink()
    except OSError as error:
        return failed(
            "overlayfs",
            f"can be mounted on {parent}, but files in it cannot be removed: {error.strerror}",
            "put root on ext4 or xfs",
        )
    finally:
        mounts.unmount(merged)
    return ok("overlayfs", f"mounted and unmounted on {parent}")
