"""Confines the calling process: capabilities, network, root directory, descriptors, memory.

Rules:
- Every step applies to the calling process and cannot be undone. The process must have a single thread.
- A step that fails raises OSError with its name. The process must then end, since it is not confined.
- Order of use: descriptors, root, limits, capabilities.
- Constants have the names of <linux/capability.h>, <linux/prctl.h> and <linux/sched.h>.
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
"""oom_score_adj of our helper processes. They would inherit -999 from the daemon, if it runs as the service.

The helpers read untrusted data, so they are the ones whose memory may grow, and the daemon replaces them at once. With
0 the OOM killer chooses them before the daemon, kubelet and Guaranteed pods, and after pods that exceed their requests.
Monitors are not changed: conmon sets itself to -1000, it is small, and its death would end its container."""


class Capability(IntEnum):
    """The capabilities that some helper process keeps, with the kernel's numbers."""

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
    """Move this process, and what it forks later, into a new network namespace without interfaces."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise _fail("unshare(CLONE_NEWNET)")


def keep_capabilities(kept: Collection[Capability]) -> None:
    """Reduce the permitted, effective and bounding sets to `kept`; clear the inheritable and ambient sets.

    Also set no_new_privs, so that executing a program cannot regain a capability. Needs CAP_SETPCAP.
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
    """Have the kernel kill this process with SIGKILL when `parent_pid` ends (PR_SET_PDEATHSIG).

    Call it after the last change of credentials, which clears the setting. Raises ProcessLookupError if the parent has
    ended already.
    """
    _prctl("PR_SET_PDEATHSIG", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise ProcessLookupError(f"parent process {parent_pid} has ended")


def forbid_tracing() -> None:
    """Make the process non-dumpable: no core file, and only a process with CAP_SYS_PTRACE may attach to it."""
    _prctl("PR_SET_DUMPABLE", PR_SET_DUMPABLE, 0)


def close_other_descriptors(kept: Collection[int]) -> None:
    """Close every descriptor above 2 that is not in `kept`."""
    first = 3
    for fd in sorted(set(kept)):
        os.closerange(first, fd)
        first = max(first, fd + 1)
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def enter_root(directory_fd: int) -> None:
    """chroot(2) to the directory of `directory_fd`, and make it the working directory. Needs CAP_SYS_CHROOT.

    This confines only a process that also loses CAP_SYS_CHROOT and has no descriptor of a directory outside.
    """
    os.fchdir(directory_fd)
    os.chroot(".")
    os.chdir("/")


def raise_oom_score_adj(at_least: int) -> None:
    """Raise this process's oom_score_adj to `at_least`. A higher value stays. Raising needs no capability."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        if int(file.read()) < at_least:
            file.write(b"%d" % at_least)


def limit_data(memory_bytes: int) -> None:
    """Bound heap and private anonymous mappings (RLIMIT_DATA). Python raises MemoryError beyond it."""
    _set_limit(resource.RLIMIT_DATA, memory_bytes)


def limit(*, memory_bytes: int, file_bytes: int, descriptors: int, cpu_s: int) -> None:
    """Bound address space, file size, open descriptors and CPU time, and disable core files.

    A write beyond `file_bytes` fails with EFBIG, since Python ignores SIGXFSZ. Beyond `cpu_s` seconds of CPU time the
    kernel kills the process.
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
