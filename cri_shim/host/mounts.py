"""Mounts: overlay root file systems, binds and tmpfs, and their undoing.

Rules:
- Every function blocks in the kernel; from a coroutine, call through `kernel_call`.
- `OSError` passes with the target in it. What a person can change (too many layers, a kernel that is too old) is one
  of our errors.
- Unmounting succeeds on what isn't mounted, never follows a symbolic link, and detaches what is busy: its users keep
  what they hold, the name is free at once.
- A mount's options must fit one page, which the kernel cuts without a word (mount(2)). Therefore layers have short
  names; where too many do not fit with their directory, a throw-away thread makes the mount from inside it.
"""

from __future__ import annotations

import errno
import os
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

# What a kernel defaults to depends on its build, so each is said:
# - redirect_dir=nofollow and metacopy=off: an extended attribute in a layer must never make the kernel take a name or
#   a file's data from another place in a layer, the more since layers come from outside and are shared by containers;
#   and an upper directory keeps meaning the same without them. The price: renaming a directory of the image gives
#   EXDEV, which mv(1) turns into a copy.
# - index=off: the index ties an upper directory to the very inodes of its lower layers, and a layer pulled again has
#   others; it serves NFS export and hard links across copy-up, which containers don't ask for.
# `xino` is left alone: layers and upper share one file system, where inode numbers are already stable.
_SAFE = "redirect_dir=nofollow,metacopy=off"
_SAFE_WRITABLE = _SAFE + ",index=off"


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
    """Mount layers, top layer first and named relative to `layers_dir`, with `upper` above them; blocking.

    Without `upper` (and `work`, which belongs to it) the mount is read-only. A layer named twice counts where it is
    named first: what it would add lower down is covered by itself. With `userns_fd` the layers' files belong to
    those whom that user namespace maps their owners to; `upper`, which holds the mapped owners, is given to the
    namespace's root by the caller. That needs Linux 5.19, and layers on a file system that knows ID-mapped mounts.
    With `label` every file bears this SELinux label.

    Raises:
        ValueError: no layer, a name that leaves `layers_dir`, only one of `upper` and `work`.
        ResourceExhaustedError: more layers than the kernel takes.
        OSError: the kernel refused; ENOENT when a directory is missing.
    """
    names = list(dict.fromkeys(lowers))  # the kernel refuses one directory twice
    for name in names:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"layer name {quoted(name)} does not stay in {layers_dir}")
    if not names:
        raise ValueError(f"overlay at {target}: it needs one layer at least")
    if (upper is None) != (work is None):
        raise ValueError(f"overlay at {target}: upper and work directory go together")
    if upper is None and len(names) == 1:
        # The kernel makes no overlay of a single read-only layer; it would show that layer itself.
        if userns_fd is None:
            bind(layers_dir / names[0], target, readonly=True)
        else:
            _bind_mapped(layers_dir / names[0], target, userns_fd)
        return

    target = target.absolute()
    upper, work = upper and upper.absolute(), work and work.absolute()
    context = f',context="{label}"' if label else ""
    options = build_overlay_options(names, upper, work) + context
    _check_fits(options, len(names), target)
    if userns_fd is not None:
        _mount_mapped(target, layers_dir, names, upper, work, userns_fd, context)
        return
    flags = syscalls.MS_RDONLY if upper is None else 0
    whole_names = [f"{layers_dir.absolute()}/{name}" for name in names]
    whole_options = build_overlay_options(whole_names, upper, work) + context
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
    """An overlay of ID-mapped clones of the layers.

    The kernel wants the clones mounted somewhere while the overlay is made; it keeps its own of each. So they are
    mounted in a mount namespace that ends with its thread, and only the overlay comes out of it: whatever happens,
    nothing else can stay.
    """
    clones = [str(number) for number in range(len(names))]
    options = build_overlay_options(clones, upper, work and work.absolute()) + context

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
    """One layer, ID-mapped and read-only."""
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


def can_map_ids(directory: Path, userns_fd: int) -> bool:
    """Whether the file system of `directory` knows ID-mapped mounts, and this kernel overlays of them; blocking."""
    # Nothing says it but the version: overlays took ID-mapped layers with 5.19.
    release = os.uname().release.split(".")
    if (int(release[0]), int(release[1].split("-")[0])) < (5, 19):
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
    """The same directory on a mount of its own, which nobody else sees and which ends with this descriptor.

    No device is opened there, no program run; both may be made. Raises OSError; ENOSYS before Linux 5.12.
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
    """Whether this kernel changes mounts recursively (Linux 5.12): what recursive read-only mounts stand on."""
    try:
        syscalls.mount_setattr(-1, "", syscalls.AT_EMPTY_PATH)
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def build_overlay_options(lowers: Sequence[str], upper: Path | None, work: Path | None) -> str:
    """The option string of an overlay mount, with the kernel's escapes; pure."""
    lowerdir = "lowerdir=" + ":".join(_escape(name) for name in lowers)
    if upper is None or work is None:
        return f"{_SAFE},{lowerdir}"
    upper_and_work = f"upperdir={_escape(str(upper))},workdir={_escape(str(work))}"
    return f"{_SAFE_WRITABLE},{upper_and_work},{lowerdir}"


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def _check_fits(options: str, layers: int, target: Path) -> None:
    if layers > MAX_LOWER_LAYERS:
        raise ResourceExhaustedError(
            f"overlay at {target}: {layers} layers, the kernel takes {MAX_LOWER_LAYERS}; "
            "rebuild the image with fewer layers"
        )
    if not _fits(options):
        raise ResourceExhaustedError(
            f"overlay at {target}: the options for {layers} layers take {_size(options)} bytes, the kernel "
            f"takes one page of {_page()}; rebuild the image with fewer layers"
        )


def _fits(options: str) -> bool:
    return _size(options) <= _page()


def _size(options: str) -> int:
    return len(os.fsencode(options)) + 1  # the closing NUL is part of the page


def _page() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def bind(source: Path, target: Path, *, readonly: bool = False, recursive: bool = False) -> None:
    """Mount `source` at `target` too, with what is mounted below it when `recursive`; blocking.

    `readonly` covers, when `recursive`, the mounts below as well. Either all of it is done or nothing.
    Raises OSError, and UnsupportedError for `readonly` on a kernel before 5.12.
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
                f"read-only bind at {target}: the kernel is older than 5.12"
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
    """Mount an empty tmpfs, nosuid and nodev, of user and group `owner`; blocking.

    Without `size_bytes` it is half of the memory. With `label` every file bears this SELinux label.
    """
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | (syscalls.MS_NOEXEC if noexec else 0)
    options = f"mode={mode:o},uid={owner[0]},gid={owner[1]}"
    if size_bytes is not None:
        options += f",size={size_bytes}"
    if label:
        options += f',context="{label}"'
    syscalls.mount("tmpfs", target, "tmpfs", flags, options)


def unmount(target: Path | str) -> bool:
    """Detach everything mounted at `target`, however often; whether anything was; blocking."""
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
    """Detach everything mounted strictly below `directory`; nothing happens when that isn't there; blocking.

    Every name in it is tried, so that the cost is that of a few names and not that of all the node's mounts: nothing
    for trees that a container writes to. Raises the first OSError after it has tried them all.
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
                # Asked anew where something was mounted: it may have been of another kind.
                if os.path.isdir(entry.path) if mounted else entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    if first is not None:
        raise first
