"""Files: written whole or not at all, read within a bound, and reached inside a root that is not to be trusted.

Rules:
- What is half written has the suffix `.tmp`; a sweeper may remove any file of that name.
- Inside a container's root file system every name is resolved by the kernel with that root as `/`
  (openat2(2), RESOLVE_IN_ROOT): neither `..` nor a symbolic link leads out, however it changes meanwhile.
- Only regular files are read, and nothing else is even opened: a FIFO can't block us, a device sees no open.
- `OSError` passes, with the path. Trees are in `tree`, offered here as well.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import posixpath
import stat
from typing import TYPE_CHECKING

from cri_shim.host import syscalls
from cri_shim.host.tree import DiskUsage, disk_usage, remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "TMP_SUFFIX",
    "DiskUsage",
    "disk_usage",
    "make_dirs_in_root",
    "open_in_root",
    "read_bounded",
    "read_in_root",
    "remove_tree",
    "size_in_root",
    "write_atomic",
    "write_new",
]

TMP_SUFFIX = ".tmp"
_RACE_RETRIES = 64
_tmp_numbers = itertools.count()


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, fsync: bool = False) -> None:
    """Replace `path` by a file of exactly these bytes and this mode, or leave it as it was.

    With `fsync` the bytes and the name survive a power cut once this returns. A `path` that is a symbolic link is
    replaced, not followed. Raises OSError; on ENOSPC nothing stays.
    """
    # Distinct per process and call; one that a killed daemon left is in the way of nobody.
    tmp = f"{path}.{os.getpid()}-{next(_tmp_numbers)}{TMP_SUFFIX}"
    try:
        _write(tmp, os.O_TRUNC, data, mode, fsync=fsync)
        os.rename(tmp, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(tmp)
        raise
    if fsync:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Make a file of these bytes and this mode, which nobody reads before the caller says that it is there.

    Raises OSError, FileExistsError too; what was written until then stays.
    """
    _write(path, os.O_EXCL, data, mode, fsync=False)


def _write(path: Path | str, how: int, data: bytes, mode: int, *, fsync: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | how | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, mode)  # whatever the umask
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The whole of a regular file of at most `max_bytes`, reached by an ordinary, trusted path.

    Raises OSError: EFBIG when it is larger, EINVAL when it is no regular file.
    """
    named = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _read_regular(named, max_bytes, str(path))
    finally:
        os.close(named)


def open_in_root(root: Path | int, path: str, flags: int, *, mode: int = 0) -> int:
    """Open `path` with `root` (a directory, or a descriptor of one) as its `/`; the caller closes the descriptor.

    Links of /proc that jump (magic links) are refused. `mode` is for O_CREAT. An open for reading of what may be a
    FIFO or a device needs care of its own: `read_in_root` has it.
    """
    with _root_fd(root) as root_fd:
        for _ in range(_RACE_RETRIES):
            try:
                return syscalls.openat2(
                    root_fd,
                    path,
                    flags,
                    mode=mode,
                    resolve=syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS,
                )
            except OSError as error:
                if error.errno != errno.EAGAIN:  # a rename somewhere raced with a `..` of the path
                    raise
        raise OSError(errno.EAGAIN, "the tree is being renamed all the time", path)


def read_in_root(root: Path | int, path: str, max_bytes: int) -> bytes | None:
    """The whole of a regular file inside `root`; None when there is none of that name.

    Raises OSError: EFBIG when it is larger than `max_bytes`, EINVAL when it is no regular file, ELOOP.
    """
    try:
        named = open_in_root(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _read_regular(named, max_bytes, path)
    finally:
        os.close(named)


def size_in_root(root: Path | int, path: str) -> int | None:
    """Bytes of what has this name inside `root`, which is not opened; None when there is nothing. Raises OSError."""
    try:
        named = open_in_root(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.fstat(named).st_size
    finally:
        os.close(named)


def make_dirs_in_root(
    root: Path | int, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0
) -> None:
    """Make the directory `path` inside `root`, with every one that is missing on the way.

    Only directories made here get `mode`, `uid` and `gid`. `..` in `path` is resolved as text; symbolic links are
    followed inside the root. Raises OSError: ENOTDIR where something else is in the way, EEXIST where a symbolic
    link leads nowhere.
    """
    parts = [part for part in posixpath.normpath("/" + path).split("/") if part]
    with _root_fd(root) as root_fd:
        directory = os.O_PATH | os.O_DIRECTORY
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            try:
                os.close(open_in_root(root_fd, name, directory))
                continue
            except FileNotFoundError:
                pass
            parent = open_in_root(root_fd, "/".join(parts[: depth - 1]) or "/", directory)
            try:
                _make_dir(parent, parts[depth - 1], mode, uid, gid)
            except OSError as error:
                raise OSError(error.errno, error.strerror, name) from error
            finally:
                os.close(parent)


def _make_dir(parent: int, name: str, mode: int, uid: int, gid: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        # Somebody was quicker, or a link leads nowhere: only a directory is good enough.
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return
        raise
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)  # after the owner, whose change drops set-ID bits
    finally:
        os.close(fd)


def _read_regular(named: int, max_bytes: int, path: str) -> bytes:
    """Read what an O_PATH descriptor names, once it is known to be harmless to open."""
    if not stat.S_ISREG(os.fstat(named).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    # Through /proc: the same file that was looked at, whatever has its name by now.
    fd = os.open(f"/proc/self/fd/{named}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        left = max_bytes + 1
        while left > 0 and (chunk := os.read(fd, min(left, 1 << 20))):
            chunks.append(chunk)
            left -= len(chunk)
        if left <= 0:
            raise OSError(errno.EFBIG, f"larger than the {max_bytes} bytes allowed", path)
        return b"".join(chunks)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _root_fd(root: Path | int) -> Iterator[int]:
    if isinstance(root, int):
        yield root
        return
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
