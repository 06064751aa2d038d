"""Mounts and unmounts: overlay root file systems, binds and tmpfs.

Rules:
- Every function blocks in the kernel. A coroutine calls it through `kernel_call`.
- `OSError` passes, with the mount point. Too many layers and a kernel that is too old are CriShimErrors, since an
  operator can remedy them.
- Unmounting succeeds if nothing is mounted, never follows a symbolic link, and detaches a busy mount: its users keep
  their open files, and the name is free at once.
- Mount options must fit into one page; mount(2) silently cuts longer ones. So layers have short names. If many layers
  do not fit with their directory in front, a throw-away thread changes into that directory and mounts from there.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from typing import TYPE_CHECKING

from cri_shim.errors import ResourceExhaustedError, UnsupportedError
from cri_shim.host import syscalls
from cri_shim.host.throwaway import in_throwaway_thread
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_LOWER_LAYERS = 500
"""OVL_MAX_STACK in the kernel."""

# The defaults depend on the kernel's configuration, so each option is set:
# - redirect_dir=nofollow and metacopy=off: otherwise an extended attribute in a layer, which is untrusted and shared by
#   containers, could make the kernel take a name or a file's data from elsewhere in a layer. Also, an upper directory
#   then has the same meaning under every kernel. The price: rename(2) of a directory of the image fails with EXDEV,
#   and mv(1) copies it instead.
# - index=off: the index binds an upper directory to the inodes of its lower layers, and a layer that is pulled again
#   has other inodes. The index serves NFS export and hard links across copy-up, which containers do not need. `xino`
#   keeps its default: layers and upper directory are on one file system, so inode numbers are stable anyway.
# - volatile (Linux 5.10): otherwise an unmount writes out all that is dirty on the whole file system, other containers'
#   files and pulls included, and a container that syncs makes the kernel do so at any time. The price: what a container
#   syncs in its root file system may be lost with the power. Its container is gone then, too: a kubelet makes a new
#   one, with a new upper directory. The kernel mounts such an upper directory only once, and so do we.
_SAFE = "redirect_dir=nofollow,metacopy=off"
_SAFE_WRITABLE = _SAFE + ",index=off"
_VOLATILE_SINCE = (5, 10)


def mount_overlay(
    target: Path,
    *,
    layers_dir: Path,
    lowers: Sequence[str],
    upper: Path | None,
    work: Path | None,
    userns_fd: int | None = None,
    label: str = "",
) -> None:
    """Mount an overlay of layers at `target`; blocking.

    `lowers` names the layers relative to `layers_dir`, the top layer first. Without `upper` and `work` the mount is
    read-only. With `userns_fd` the layers are ID-mapped to that user namespace, which needs Linux 5.19 and a file
    system with ID-mapped mounts; `upper` is not mapped, and the caller must chown it to the namespace's root. With
    `label` every file has this SELinux label.

    Raises:
        ValueError: no layer, a name that leaves `layers_dir`, or only one of `upper` and `work`.
        ResourceExhaustedError: more layers than the kernel accepts.
        OSError: from the kernel; ENOENT if a directory is missing.
    """
    # The kernel refuses a directory that is listed twice. The first occurrence counts: it hides the lower one.
    names = list(dict.fromkeys(lowers))
    for name in names:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"layer name {quoted(name)} is not a path below {layers_dir}")
    if not names:
        raise ValueError(f"overlay at {target}: at least one layer is required")
    if (upper is None) != (work is None):
        raise ValueError(f"overlay at {target}: give both upper and work directory, or neither")
    if upper is None and len(names) == 1:
        # The kernel refuses a read-only overlay of a single layer. A bind mount shows the same.
        if userns_fd is None:
            bind(layers_dir / names[0], target, readonly=True)
        else:
            _bind_mapped(layers_dir / names[0], target, userns_fd)
        return

    target = target.absolute()
    upper, work = upper and upper.absolute(), work and work.absolute()
    context = f',context="{label}"' if label else ""
    options = build_overlay_options(names, upper, work, volatile=_has_volatile()) + context
    _check_fits(options, len(names), target)
    if userns_fd is not None:
        _mount_mapped(target, layers_dir, names, upper, work, userns_fd, context)
        return
    flags = syscalls.MS_RDONLY if upper is None else 0
    whole_names = [f"{layers_dir.absolute()}/{name}" for name in names]
    whole_options = build_overlay_options(whole_names, upper, work, volatile=_has_volatile())
    whole_options += context
    if _fits(whole_options):
        syscalls.mount("overlay", target, "overlay", flags, whole_options)
        return

    def make() -> None:
        syscalls.unshare(syscalls.CLONE_FS)
        os.chdir(layers_dir)
        syscalls.mount("overlay", target, "overlay", flags, options)

    in_throwaway_thread(make, name="overlay-mount")


def _mount_mapped(
    target: Path,
    layers_dir: Path,
    names: Sequence[str],
    upper: Path | None,
    work: Path | None,
    userns_fd: int,
    context: str,
) -> None:
    """Mount an overlay of ID-mapped clones of the layers.

    The kernel requires the clones to be mounted while the overlay is created; the overlay then has its own reference to
    each. So a throw-away thread mounts them in a new mount namespace, and only a clone of the overlay leaves it. Its
    other mounts end with the thread, whatever fails.
    """
    clones = [str(number) for number in range(len(names))]
    options = build_overlay_options(
        clones, upper, work and work.absolute(), volatile=_has_volatile()
    )
    options += context

    def make() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("tmpfs", target, "tmpfs", 0, "mode=700")
        os.chdir(target)
        for clone, name in zip(clones, names, strict=True):
            fd = syscalls.open_tree(layers_dir / name, syscalls.OPEN_TREE_CLONE)
            try:
                _set_idmap(fd, userns_fd)
                os.mkdir(clone)
                syscalls.move_mount(fd, clone)
            finally:
                os.close(fd)
        os.mkdir("overlay")
        flags = syscalls.MS_RDONLY if upper is None else 0
        syscalls.mount("overlay", "overlay", "overlay", flags, options)
        return syscalls.open_tree("overlay", syscalls.OPEN_TREE_CLONE)

    overlay = in_throwaway_thread(make, name="overlay-mount")
    try:
        syscalls.move_mount(overlay, target)
    finally:
        os.close(overlay)


def _bind_mapped(layer: Path, target: Path, userns_fd: int) -> None:
    """Bind-mount one layer, ID-mapped and read-only."""
    fd = syscalls.open_tree(layer, syscalls.OPEN_TREE_CLONE)
    try:
        _set_idmap(fd, userns_fd, also=syscalls.MOUNT_ATTR_RDONLY)
        syscalls.move_mount(fd, target)
    finally:
        os.close(fd)


def _set_idmap(mount_fd: int, userns_fd: int, *, also: int = 0) -> None:
    syscalls.mount_setattr(
        mount_fd,
        "",
        syscalls.AT_EMPTY_PATH,
        attr_set=syscalls.MOUNT_ATTR_IDMAP | also,
        userns_fd=userns_fd,
    )


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor version in uname(2)'s release: (6, 1) for `6.1.0-38-amd64`, (0, 0) for an unknown form. Pure."""
    version = re.match(r"(\d+)\.(\d+)", release)
    return (0, 0) if version is None else (int(version[1]), int(version[2]))


def can_map_ids(directory: Path, userns_fd: int) -> bool:
    """Whether the file system of `directory` has ID-mapped mounts, and overlayfs accepts them as layers; blocking."""
    # No probe short of a mount shows whether overlayfs accepts ID-mapped layers. Linux 5.19 and later do.
    if kernel_version(os.uname().release) < (5, 19):
        return False
    try:
        fd = syscalls.open_tree(directory, syscalls.OPEN_TREE_CLONE)
    except OSError:
        return False
    try:
        _set_idmap(fd, userns_fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def without_devices(directory_fd: int) -> int:
    """Clone the directory's mount with nodev, nosuid and noexec, and return its descriptor; blocking.

    The mount is detached: no other process sees it, and it ends when the descriptor is closed. Device nodes can be
    created in it, but not opened. Raises OSError; ENOSYS before Linux 5.12.
    """
    fd = syscalls.open_tree(f"/proc/self/fd/{directory_fd}", syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(
            fd,
            "",
            syscalls.AT_EMPTY_PATH,
            attr_set=syscalls.MOUNT_ATTR_NODEV
            | syscalls.MOUNT_ATTR_NOSUID
            | syscalls.MOUNT_ATTR_NOEXEC,
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def has_mount_setattr() -> bool:
    """Whether the kernel has mount_setattr(2) (Linux 5.12), which recursive read-only mounts need."""
    try:
        syscalls.mount_setattr(-1, "", syscalls.AT_EMPTY_PATH)
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


@functools.cache
def _has_volatile() -> bool:
    return kernel_version(os.uname().release) >= _VOLATILE_SINCE


def build_overlay_options(
    lowers: Sequence[str], upper: Path | None, work: Path | None, *, volatile: bool
) -> str:
    """The options of an overlay mount, escaped as the kernel expects; `volatile` where the kernel has it. Pure."""
    lowerdir = "lowerdir=" + ":".join(_escape(name) for name in lowers)
    if upper is None or work is None:
        return f"{_SAFE},{lowerdir}"
    upper_and_work = f"upperdir={_escape(str(upper))},workdir={_escape(str(work))}"
    options = f"{_SAFE_WRITABLE},volatile" if volatile else _SAFE_WRITABLE
    return f"{options},{upper_and_work},{lowerdir}"


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def _check_fits(options: str, layers: int, target: Path) -> None:
    if layers > MAX_LOWER_LAYERS:
        raise ResourceExhaustedError(
            f"overlay at {target}: the image has {layers} layers; the kernel's limit is {MAX_LOWER_LAYERS}: "
            "rebuild the image with fewer layers"
        )
    if not _fits(options):
        raise ResourceExhaustedError(
            f"overlay at {target}: the mount options for {layers} layers have {_size(options)} bytes; the kernel's "
            f"limit is one page of {_page()}: rebuild the image with fewer layers"
        )


def _fits(options: str) -> bool:
    return _size(options) <= _page()


def _size(options: str) -> int:
    return len(os.fsencode(options)) + 1  # the kernel copies the final NUL into the page as well


def _page() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def bind(source: Path, target: Path, *, readonly: bool = False, recursive: bool = False) -> None:
    """Bind-mount `source` at `target`; blocking.

    With `recursive` the mounts below `source` are bound, too, and `readonly` applies to them as well. On failure
    nothing stays mounted. Raises OSError, and UnsupportedError for `readonly` before Linux 5.12.
    """
    recursion = syscalls.MS_REC if recursive else 0
    syscalls.mount(source, target, None, syscalls.MS_BIND | recursion)
    if not readonly:
        return
    try:
        syscalls.mount_setattr(
            syscalls.AT_FDCWD,
            target,
            syscalls.AT_RECURSIVE if recursive else 0,
            attr_set=syscalls.MOUNT_ATTR_RDONLY,
        )
    except OSError as error:
        syscalls.umount2(target, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        if error.errno == errno.ENOSYS:
            raise UnsupportedError(
                f"cannot make the bind mount at {target} read-only: this needs Linux 5.12"
            ) from error
        raise


def mount_tmpfs(
    target: Path,
    *,
    size_bytes: int | None = None,
    mode: int = 0o1777,
    noexec: bool = True,
    owner: tuple[int, int] = (0, 0),
    label: str = "",
) -> None:
    """Mount an empty tmpfs, nosuid and nodev, whose root directory belongs to `owner` (user, group); blocking.

    Without `size_bytes` the kernel's limit applies, half of the memory. With `label` every file has this SELinux label.
    """
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | (syscalls.MS_NOEXEC if noexec else 0)
    options = f"mode={mode:o},uid={owner[0]},gid={owner[1]}"
    if size_bytes is not None:
        options += f",size={size_bytes}"
    if label:
        options += f',context="{label}"'
    syscalls.mount("tmpfs", target, "tmpfs", flags, options)


def unmount(target: Path | str) -> bool:
    """Detach every mount at `target`, also stacked ones. Returns whether there was one; blocking."""
    anything = False
    while True:
        try:
            syscalls.umount2(target, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return anything
            raise
        anything = True


def unmount_below(directory: Path) -> None:
    """Detach every mount strictly below `directory`, which need not exist; blocking.

    It calls umount2(2) on every name in the tree instead of reading the node's mounts, so that the cost depends on the
    tree alone. Do not use it for trees that a container can write to. Raises the first OSError after it tried all
    names.
    """
    first: OSError | None = None
    waiting = [os.fspath(directory)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = list(entries)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in found:
            if entry.is_symlink():
                continue
            try:
                mounted = unmount(entry.path)
            except OSError as error:
                first = first or error
            else:
                # After an unmount the name may be of another kind than the scan saw: check it again.
                if os.path.isdir(entry.path) if mounted else entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    if first is not None:
        raise first
