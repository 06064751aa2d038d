"""Wrappers of system calls that Python's standard library lacks, under the kernel's names.

Rules:
- A wrapper adds types, encodes paths, and raises `OSError` with errno and path. Callers decide everything else.
- `ctypes.CDLL` releases the GIL during the call, so a slow mount blocks only its own thread.
- The daemon's calls are here. `confine` and `seccomp`, which are used in helper processes, `durable` and `heap` call
  the C library themselves.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)

# <sys/prctl.h>
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37

# <sched.h>
CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000

# <sys/mount.h>
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# <linux/mman.h>
MADV_COLLAPSE = 25

# <linux/mount.h>
MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NOEXEC = 0x00000008
MOUNT_ATTR_IDMAP = 0x00100000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x00000004

# <linux/fcntl.h>
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# <linux/openat2.h>
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# Calls that older C libraries do not wrap. Since Linux 5.2 new calls have the same number on all our architectures.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


_libc.prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, path: str | os.PathLike[str] | None = None) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if path is None:
        raise OSError(number, os.strerror(number))
    raise OSError(number, os.strerror(number), os.fspath(path))


def set_child_subreaper(*, enabled: bool) -> None:
    """PR_SET_CHILD_SUBREAPER (prctl(2)): orphaned descendants become children of this process."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0))


def is_child_subreaper() -> bool:
    """PR_GET_CHILD_SUBREAPER (prctl(2))."""
    answer = ctypes.c_int()
    _check(_libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.addressof(answer), 0, 0, 0))
    return answer.value != 0


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    _check(_libc.unshare(flags))


def setns(fd: int, nstype: int) -> None:
    """setns(2) for the calling thread."""
    _check(_libc.setns(fd, nstype))


def mount(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    fs_type: str | None,
    flags: int,
    data: str | None = None,
) -> None:
    """mount(2); an error names the target. The kernel silently cuts `data` beyond one page."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if fs_type is None else fs_type.encode("ascii"),
            flags,
            None if data is None else os.fsencode(data),
        ),
        target,
    )


def umount2(target: str | os.PathLike[str], flags: int) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def madvise(address: int, length: int, advice: int) -> None:
    """madvise(2)."""
    _check(_libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_int(advice)))


def mincore(address: int, length: int) -> bytes:
    """mincore(2): a byte for each page, 1 if it is resident."""
    there = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
    _check(_libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), there))
    return bytes(byte & 1 for byte in there.raw)


def open_tree(path: str | os.PathLike[str], flags: int) -> int:
    """open_tree(2), Linux 5.2, always close-on-exec. Closing the descriptor of a detached clone unmounts it."""
    return _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPEN_TREE),
            ctypes.c_int(AT_FDCWD),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_uint(flags | os.O_CLOEXEC),
        ),
        path,
    )


def move_mount(from_fd: int, target: str | os.PathLike[str]) -> None:
    """move_mount(2), Linux 5.2: attach the detached mount behind `from_fd` at `target`."""
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOVE_MOUNT),
            ctypes.c_int(from_fd),
            ctypes.c_char_p(b""),
            ctypes.c_int(AT_FDCWD),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
        ),
        target,
    )


def mount_setattr(
    dir_fd: int,
    path: str | os.PathLike[str],
    flags: int,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2), Linux 5.12."""
    attr = _MountAttr(attr_set, attr_clr, 0, userns_fd)
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_uint(flags),
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        ),
        path,
    )


def openat2(
    dir_fd: int, path: str | os.PathLike[str], flags: int, *, mode: int = 0, resolve: int
) -> int:
    """openat2(2), Linux 5.6, always close-on-exec. EAGAIN: a rename raced with the resolution of `..`; retry."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        path,
    )


def inotify_init1(flags: int) -> int:
    """inotify_init1(2)."""
    return _check(_libc.inotify_init1(flags))


def inotify_add_watch(fd: int, path: str | os.PathLike[str], mask: int) -> int:
    """inotify_add_watch(2): the watch descriptor."""
    return _check(_libc.inotify_add_watch(fd, os.fsencode(path), mask), path)
