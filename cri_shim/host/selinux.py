"""SELinux on this node: whether it is there, its policy's labels for containers, and labelling a tree.

Rules of labelling:
- What a container may have written is hostile: directories are opened from their parent's descriptor without following
  links, and a link is labelled itself, not what it points to.
- The start is opened once, through no link. What it really is, not how it was called, decides whether it may be
  relabelled.
- What has the label already is left alone, so that a read-only file system that fits is no error; a file system without
  labels is passed over. What went away meanwhile is nobody's concern.
- Blocking, for as long as the tree is large; `root` stands in for / in tests.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError, InvalidArgumentError
from cri_shim.host.files import read_bounded
from cri_shim.host.syscalls import RESOLVE_NO_SYMLINKS, openat2
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

XATTR = "security.selinux"
MAX_FILE_BYTES = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP)


def enforcing(root: Path = Path("/")) -> bool | None:
    """Whether the kernel enforces its policy; None where it has no SELinux."""
    try:
        return (root / "sys/fs/selinux/enforce").read_text().strip() == "1"
    except OSError:
        return None


def container_contexts(root: Path = Path("/")) -> tuple[str, str]:
    """The text of the policy's lxc_contexts, and its path.

    Raises ConfigError where the policy has none: then there are no labels for containers.
    """
    policy = "targeted"
    try:
        config = read_bounded(root / "etc/selinux/config", MAX_FILE_BYTES).decode(
            "utf-8", "replace"
        )
    except OSError:
        config = ""
    for line in config.splitlines():
        key, separator, value = line.partition("=")
        if separator and key.strip() == "SELINUXTYPE" and "/" not in value:
            policy = value.strip()
    path = root / "etc/selinux" / policy / "contexts/lxc_contexts"
    try:
        return read_bounded(path, MAX_FILE_BYTES).decode("utf-8", "replace"), str(path)
    except OSError as error:
        raise ConfigError(
            f"SELinux: {path}: {error.strerror}: install container-selinux, or set security.selinux to off"
        ) from error


def relabel(path: str, label: str, *, untouchable: Iterable[str]) -> None:
    """Give a volume, and all below it, this label; mounts below it belong to it. Blocking.

    `path` is what links were resolved to. Raises InvalidArgumentError when it really is one of the `untouchable`
    directories, or when a link has come into it since; OSError.
    """
    try:
        start = openat2(-1, os.path.abspath(path), os.O_PATH, resolve=RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InvalidArgumentError(
            f"selinux_relabel: {quoted(path)}: a symbolic link has taken the place of what was looked at: "
            "it is not followed"
        ) from error
    try:
        real = os.readlink(f"/proc/self/fd/{start}")
        if real in untouchable or _identity(start) in _identities(untouchable):
            raise InvalidArgumentError(
                f"selinux_relabel: {quoted(path)} is {real}, a directory of the node, which is never relabelled"
            )
        value = label.encode() + b"\0"
        if not _set(f"/proc/self/fd/{start}", value, follow=True):
            return
        try:
            directory = os.open(
                f"/proc/self/fd/{start}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except NotADirectoryError:
            return
    finally:
        os.close(start)
    _label_below(directory, value)


def label_file(path: Path, label: str) -> None:
    """Label one file of ours; passed over where its file system has no labels. Raises OSError."""
    _set(str(path), label.encode() + b"\0", follow=False)


def _label_below(directory: int, value: bytes) -> None:
    """Label all below a directory, whose descriptor is closed; one descriptor per level is held."""
    levels = [(directory, _names(directory))]
    try:
        while levels:
            fd, names = levels[-1]
            if not names:
                os.close(levels.pop()[0])
                continue
            name = names.pop()
            try:
                # The directory by descriptor, the last name not followed: nobody can lead this elsewhere.
                _set(f"/proc/self/fd/{fd}/{name}", value, follow=False)
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            levels.append((below, _names(below)))
    finally:
        for fd, _ in levels:
            os.close(fd)


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _set(path: str, value: bytes, *, follow: bool) -> bool:
    """Whether the file system has labels at all."""
    try:
        if os.getxattr(path, XATTR, follow_symlinks=follow) == value:
            return True
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        if error.errno != errno.ENODATA:
            raise
    try:
        os.setxattr(path, XATTR, value, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _identities(paths: Iterable[str]) -> set[tuple[int, int]]:
    """What these directories are, so that a bind mount of one is known for what it is."""
    found = set()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found
