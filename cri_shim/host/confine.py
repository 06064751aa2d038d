"""Giving up what a process could do: capabilities, network, root directory, descriptors, memory.

Rules: everything here acts on the calling process and can't be taken back; the process must have one thread. Each
step raises OSError naming itself; a caller that can't be confined must end. Order of use: descriptors, root,
limits, capabilities. Constants bear the names of <linux/capability.h>, <linux/prctl.h> and <linux/sched.h>.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CLONE_NEWNET = 0x40000000
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY_BIT = 63


HELPERS_OOM_SCORE_ADJ = 0
"""Of our own programs beside the daemon, which is at -999 as a service, and so would they be. They read what strangers
send, so it is they that may grow, and they are replaced within a moment: so they are what any process of the node is,
taken before the daemon, the kubelet and pods with guaranteed memory, but after those that use more than they asked for.
Monitors keep what they have, -1000 by their own doing: each is small, and its end is its container's."""


class Capability(IntEnum):
    """The capabilities that this package ever keeps, by their kernel numbers."""

    CAP_CHOWN = 0
    CAP_DAC_OVERRIDE = 1
    CAP_DAC_READ_SEARCH = 2
    CAP_FOWNER = 3
    CAP_FSETID = 4
    CAP_SETPCAP = 8
    CAP_SYS_CHROOT = 18
    CAP_MKNOD = 27
    CAP_SETFCAP = 31


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_libc.prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4
_libc.capset.argtypes = (ctypes.POINTER(_CapHeader), ctypes.POINTER(_CapData))
_libc.unshare.argtypes = (ctypes.c_int,)


def _fail(step: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{step}: {os.strerror(number)}")


def _prctl(step: str, option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        raise _fail(step)


def leave_network() -> None:
    """A network namespace of our own, with nothing in it, for this process and what it forks."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise _fail("unshare(CLONE_NEWNET)")


def keep_capabilities(kept: Collection[Capability]) -> None:
    """Only `kept` stay permitted, effective and in the bounding set; inheritable and ambient become empty.

    Also sets no_new_privs: no program that is executed later can bring a capability back. Needs CAP_SETPCAP.
    """
    for bit in range(_LAST_CAPABILITY_BIT + 1):
        if bit in kept:
            continue
        if _libc.prctl(PR_CAPBSET_READ, bit, 0, 0, 0) == 1:
            _prctl(f"PR_CAPBSET_DROP {bit}", PR_CAPBSET_DROP, bit)
    _prctl("PR_CAP_AMBIENT_CLEAR_ALL", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    mask = sum(1 << capability for capability in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = _CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)(_CapData(low, low, 0), _CapData(high, high, 0))
    if _libc.capset(ctypes.byref(header), data) != 0:
        raise _fail("capset")
    _prctl("PR_SET_NO_NEW_PRIVS", PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL for us when `parent_pid` ends; to be called after the last change of credentials, which clears it.

    Raises ProcessLookupError when the parent has ended already.
    """
    _prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise ProcessLookupError(f"parent process {parent_pid} has ended")


def forbid_tracing() -> None:
    """No core file, and no process without CAP_SYS_PTRACE may attach."""
    _prctl("PR_SET_DUMPABLE", PR_SET_DUMPABLE, 0)


def close_other_descriptors(kept: Collection[int]) -> None:
    """Close every descriptor above 2 that is not in `kept`."""
    first = 3
    for fd in sorted(set(kept)):
        os.closerange(first, fd)
        first = max(first, fd + 1)
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def enter_root(directory_fd: int) -> None:
    """Make the directory behind `directory_fd` the root and working directory. Needs CAP_SYS_CHROOT.

    It confines only a process that loses CAP_SYS_CHROOT and holds no descriptor of a directory outside.
    """
    os.fchdir(directory_fd)
    os.chroot(".")
    os.chdir("/")


def raise_oom_score_adj(at_least: int) -> None:
    """Be taken, when memory runs out, no later than processes with this value; nothing where ours is higher already."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        if int(file.read()) < at_least:
            file.write(b"%d" % at_least)


def limit_data(memory_bytes: int) -> None:
    """Bound the memory that the process fills itself: beyond it Python raises MemoryError."""
    _set_limit(resource.RLIMIT_DATA, memory_bytes)


def limit(*, memory_bytes: int, file_bytes: int, descriptors: int, cpu_s: int) -> None:
    """Bound the address space, the size of one file, open descriptors and CPU time; no core files.

    A write past `file_bytes` fails with EFBIG (Python ignores SIGXFSZ); CPU time past `cpu_s` kills.
    """
    for what, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, descriptors),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        _set_limit(what, value)


def _set_limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (bound, bound))
