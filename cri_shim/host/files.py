"""Writes files atomically, reads them within a bound, and opens files inside an untrusted root directory.

Rules:
- A file under construction has the suffix `.tmp`. Recovery may remove any file with that suffix.
- A path in a container's root file system is resolved by the kernel with that root as `/` (openat2(2),
  RESOLVE_IN_ROOT): neither `..` nor a symbolic link leads out, even if the tree changes meanwhile.
- Only regular files are opened for reading: opening a FIFO could block, and opening a device can have side effects.
- `OSError` passes, with the path. `tree` has the functions for whole trees, which are exported here as well.
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
    "memory_file",
    "open_in_root",
    "read_bounded",
    "read_in_root",
    "remove_tree",
    "size_in_root",
    "write_atomic",
    "write_new",
    "write_over",
]

TMP_SUFFIX = ".tmp"
_ONE_PAGE = 4096
_RACE_RETRIES = 64
_tmp_numbers = itertools.count()


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, fsync: bool = False) -> None:
    """Replace `path` by a file with this content and mode, or leave it unchanged.

    With `fsync` content and name survive a power failure once this returns. A symbolic link at `path` is replaced, not
    followed. Raises OSError; the temporary file is removed then.
    """
    # The name is unique per process and call, so that a file left by a killed daemon causes no conflict.
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


def write_over(path: Path, data: bytes) -> None:
    """Replace the content of a small JSON document in place. If this process is killed, the old or the new one stays.

    A rename would do the same, but ext4 starts to write a file out when it takes another's name, which costs more than
    all the rest. One write(2) within one page happens whole or not at all, also in a process that is killed; blanks
    cover the rest of a longer old document. What does not fit one page, or does not exist yet, goes by `write_atomic`.

    Raises OSError; the old content stays.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = -1
    if fd >= 0:
        try:
            size = max(len(data), os.fstat(fd).st_size)
            # What a disk without room for a first block did not take whole goes by a rename, which says why.
            if size <= _ONE_PAGE and os.write(fd, data.ljust(size)) == size:
                return
        finally:
            os.close(fd)
    write_atomic(path, data)


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Create a file with this content and mode. Not atomic: readers must not look before this returns.

    Raises FileExistsError, OSError; a partly written file stays.
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


def memory_file(data: bytes) -> int:
    """A memfd with `data`, at offset 0. Unlike a pipe it need not be written to while the child reads."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`, at a trusted path.

    Raises OSError: EFBIG if the file is larger, EINVAL if it is not a regular file.
    """
    named = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _read_regular(named, max_bytes, str(path))
    finally:
        os.close(named)


def open_in_root(root: Path | int, path: str, flags: int, *, mode: int = 0) -> int:
    """Open `path` with the directory `root` (a path or a descriptor) as `/`. The caller closes the descriptor.

    Magic links of /proc are refused. `mode` is for O_CREAT. To read a file that may be a FIFO or a device, use
    `read_in_root`.
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
                # openat2(2): EAGAIN if a rename or mount anywhere raced with the resolution of a `..`.
                if error.errno != errno.EAGAIN:
                    raise
        raise OSError(
            errno.EAGAIN, f"renames interfered with {_RACE_RETRIES} attempts to resolve it", path
        )


def read_in_root(root: Path | int, path: str, max_bytes: int) -> bytes | None:
    """The content of a regular file inside `root`, or None if `path` does not exist.

    Raises OSError: EFBIG if the file is larger than `max_bytes`, EINVAL if it is not a regular file, ELOOP.
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
    """The size in bytes of `path` inside `root`, or None if it does not exist.

    The file is not opened. Raises OSError.
    """
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
    """Create the directory `path` inside `root`, and its missing parents.

    Only new directories get `mode`, `uid` and `gid`. `..` in `path` is resolved lexically. Symbolic links are followed
    inside the root. Raises OSError: ENOTDIR if a component is not a directory, EEXIST if a symbolic link is dangling.
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
        # Another process created it since the look, or it is a dangling link, which is refused.
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return
        raise
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)  # after fchown, which clears set-ID bits
    finally:
        os.close(fd)


def _read_regular(named: int, max_bytes: int, path: str) -> bytes:
    """Read the file of an O_PATH descriptor, if it is a regular file."""
    if not stat.S_ISREG(os.fstat(named).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    # Reopening through /proc opens the file that was checked, even if its name leads to another one by now.
    fd = os.open(f"/proc/self/fd/{named}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        left = max_bytes + 1
        while left > 0 and (chunk := os.read(fd, min(left, 1 << 20))):
            chunks.append(chunk)
            left -= len(chunk)
        if left <= 0:
            raise OSError(errno.EFBIG, f"larger than the limit of {max_bytes} bytes", path)
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


def fd_path(fd: int) -> str:
    """The path by which other processes can open a descriptor of this process."""
    return f"/proc/{os.getpid()}/fd/{fd}"
