"""SELinux: whether the kernel enforces it, the policy's labels for containers, and relabelling of trees.

Rules of relabelling:
- A container may have written the tree, so it is untrusted: directories are opened relative to their parent's
  descriptor without following links, and a link itself gets the label, not its target.
- The root of the tree is opened once, through no symbolic link. Its identity, not its name, decides whether it may be
  relabelled.
- A file with the right label is not written to, so that a read-only file system with that label is no error. A file
  system without labels is skipped, and so are files that vanish meanwhile.
- It blocks for a time proportional to the tree.

`root` is a directory that takes the place of / in tests.
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
    """Whether the kernel enforces its policy, or None if SELinux is not enabled."""
    try:
        return (root / "sys/fs/selinux/enforce").read_text().strip() == "1"
    except OSError:
        return None


def container_contexts(root: Path = Path("/")) -> tuple[str, str]:
    """The content of the policy's lxc_contexts, and its path.

    Raises ConfigError if the policy has no such file, and so no labels for containers.
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
            f"SELinux: cannot read {path}: {error.strerror}: install container-selinux, or set security.selinux to off"
        ) from error


def relabel(path: str, label: str, *, untouchable: Iterable[str]) -> None:
    """Label a volume and everything below it, including file systems mounted there; blocking.

    `path` has no symbolic links. Raises InvalidArgumentError if it is one of the `untouchable` directories, also under
    another name, or if a link has been put into the path since it was resolved; OSError.
    """
    try:
        start = openat2(-1, os.path.abspath(path), os.O_PATH, resolve=RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InvalidArgumentError(
            f"selinux_relabel: {quoted(path)} was replaced by a symbolic link after it was checked; "
            "refused to follow it"
        ) from error
    try:
        real = os.readlink(f"/proc/self/fd/{start}")
        if real in untouchable or _identity(start) in _identities(untouchable):
            raise InvalidArgumentError(
                f"selinux_relabel: {quoted(path)} is the system directory {real}, which is never relabelled"
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
    """Label one file of our own. No effect on a file system without labels. Raises OSError."""
    _set(str(path), label.encode() + b"\0", follow=False)


def _label_below(directory: int, value: bytes) -> None:
    """Label everything below a directory, and close its descriptor. One descriptor per level is open."""
    levels = [(directory, _names(directory))]
    try:
        while levels:
            fd, names = levels[-1]
            if not names:
                os.close(levels.pop()[0])
                continue
            name = names.pop()
            try:
                # Directory by descriptor, last name not followed: a concurrent rename cannot redirect this.
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
    """Label a file unless it has the label. Returns False if the file system has no labels."""
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
    """Device and inode of these directories, which also identify a bind mount of one of them."""
    found = set()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found
