"""A seccomp filter for a process that parses untrusted data: it allows files, memory, threads and clocks, nothing else.

Rules:
- A system call that is not listed fails with ENOSYS, as on an older kernel, for which C libraries have fallbacks. So
  there are no sockets, signals to other processes, execve, namespaces, mounts, tracing, bpf or io_uring.
- The calling thread must be the only one, and must have no_new_privs.
- A machine whose numbers are not listed runs without a filter.

Numbers are those of <asm/unistd_64.h> and <asm-generic/unistd.h>; constants have the names of <linux/seccomp.h>,
<linux/filter.h> and <linux/audit.h>.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_SET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, of a little-endian machine
_CLONE_THREAD = 0x00010000

_X86_64 = """
    read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12
    rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 pread64 17 pwrite64 18 readv 19 writev 20 access 21 pipe 22
    sched_yield 24 mremap 25 madvise 28 dup 32 dup2 33 nanosleep 35 getpid 39 recvfrom 45 recvmsg 47 exit 60 uname 63
    fcntl 72 truncate 76 ftruncate 77 getcwd 79 chdir 80 fchdir 81 rename 82 mkdir 83 rmdir 84 link 86 unlink 87
    symlink 88 readlink 89 chmod 90 fchmod 91 chown 92 fchown 93 lchown 94 umask 95 gettimeofday 96 getrlimit 97
    getrusage 98 sysinfo 99 getuid 102 getgid 104 geteuid 107 getegid 108 getppid 110 sigaltstack 131 mknod 133
    fstatfs 138 arch_prctl 158 gettid 186 setxattr 188 lsetxattr 189 fsetxattr 190 getxattr 191 lgetxattr 192
    fgetxattr 193 listxattr 194 llistxattr 195 flistxattr 196 removexattr 197 lremovexattr 198 fremovexattr 199
    time 201 futex 202 sched_getaffinity 204 getdents64 217 set_tid_address 218 restart_syscall 219 fadvise64 221
    clock_gettime 228 clock_getres 229 clock_nanosleep 230 exit_group 231 utimes 235 openat 257 mkdirat 258
    mknodat 259 fchownat 260 futimesat 261 newfstatat 262 unlinkat 263 renameat 264 linkat 265 symlinkat 266
    readlinkat 267 fchmodat 268 faccessat 269 pselect6 270 ppoll 271 set_robust_list 273 utimensat 280 fallocate 285
    dup3 292 pipe2 293 renameat2 316 getrandom 318 membarrier 324 statx 332 rseq 334 close_range 436 faccessat2 439
    futex_waitv 449 fchmodat2 452
"""
_GENERIC = """
    setxattr 5 lsetxattr 6 fsetxattr 7 getxattr 8 lgetxattr 9 fgetxattr 10 listxattr 11 llistxattr 12 flistxattr 13
    removexattr 14 lremovexattr 15 fremovexattr 16 getcwd 17 dup 23 dup3 24 fcntl 25 mknodat 33 mkdirat 34 unlinkat 35
    symlinkat 36 linkat 37 renameat 38 fstatfs 44 truncate 45 ftruncate 46 fallocate 47 faccessat 48 chdir 49
    fchdir 50 fchmod 52 fchmodat 53 fchownat 54 fchown 55 openat 56 close 57 pipe2 59 getdents64 61 lseek 62 read 63
    write 64 readv 65 writev 66 pread64 67 pwrite64 68 pselect6 72 ppoll 73 readlinkat 78 newfstatat 79 fstat 80
    utimensat 88 exit 93 exit_group 94 set_tid_address 96 futex 98 set_robust_list 99 nanosleep 101 clock_gettime 113
    clock_getres 114 clock_nanosleep 115 sched_getaffinity 123 sched_yield 124 restart_syscall 128 sigaltstack 132
    rt_sigaction 134 rt_sigprocmask 135 rt_sigreturn 139 uname 160 getrlimit 163 getrusage 165 umask 166
    gettimeofday 169 getpid 172 getppid 173 getuid 174 geteuid 175 getgid 176 getegid 177 gettid 178 sysinfo 179
    recvfrom 207 recvmsg 212 brk 214 munmap 215 mremap 216 mmap 222 fadvise64 223 mprotect 226 madvise 233
    renameat2 276 getrandom 278 membarrier 283 statx 291 rseq 293 close_range 436 faccessat2 439 futex_waitv 449
    fchmodat2 452
"""
_BY_ARGUMENT_X86_64 = {"clone": 56, "prlimit64": 302, "ioctl": 16}
_BY_ARGUMENT_GENERIC = {"clone": 220, "prlimit64": 261, "ioctl": 29}
_MACHINES: Final = {
    # AUDIT_ARCH_..., the allowed calls, the calls whose first argument decides
    "x86_64": (0xC000003E, _X86_64, _BY_ARGUMENT_X86_64),
    "aarch64": (0xC00000B7, _GENERIC, _BY_ARGUMENT_GENERIC),
    "riscv64": (0xC00000F3, _GENERIC, _BY_ARGUMENT_GENERIC),
    "loongarch64": (0xC0000102, _GENERIC, _BY_ARGUMENT_GENERIC),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def allow_only_work_on_files(machine: str | None = None) -> bool:
    """Install the filter in this process for good. Returns False if machine or kernel have none. Raises OSError."""
    code = build_filter(machine or os.uname().machine)
    if not code:
        return False
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) != 0:
        number = ctypes.get_errno()
        if number == errno.EINVAL:
            return False  # a kernel without CONFIG_SECCOMP_FILTER
        raise OSError(number, f"PR_SET_SECCOMP: {os.strerror(number)}")
    return True


@functools.cache
def build_filter(machine: str) -> bytes:
    """The filter's BPF program for a machine of uname(2), or b"" for an unknown one. Pure.

    The result is cached: the template process builds it before it forks, so that its children need not.
    """
    if machine not in _MACHINES:
        return b""
    arch, table, by_argument = _MACHINES[machine]
    not_there = SECCOMP_RET_ERRNO | errno.ENOSYS
    steps = [
        _step(_LOAD, _ARCH),
        _step(_IF_EQUAL, arch, when_true=1),
        _step(_RETURN, SECCOMP_RET_KILL_PROCESS),  # a 32-bit call: its numbers have other meanings
        _step(_LOAD, _NR),
    ]
    # clone(2) may create a thread, but no process and no namespace.
    steps += _case(by_argument["clone"], _IF_SET, _CLONE_THREAD, not_there)
    # prlimit64(2) may concern this process (0) only.
    steps += _case(by_argument["prlimit64"], _IF_EQUAL, 0, not_there)
    # Python calls ioctl(2) to ask whether a file is a terminal, and to set FIOCLEX. After ENOTTY it uses fcntl(2).
    steps += [
        _step(_IF_EQUAL, by_argument["ioctl"], when_false=1),
        _step(_RETURN, SECCOMP_RET_ERRNO | errno.ENOTTY),
    ]
    for number in map(int, table.split()[1::2]):
        steps += [
            _step(_IF_EQUAL, number, when_false=1),
            _step(_RETURN, SECCOMP_RET_ALLOW),
        ]
    return b"".join([*steps, _step(_RETURN, not_there)])


def _case(number: int, test: int, value: int, otherwise: int) -> list[bytes]:
    """The instructions for a system call that is allowed depending on its first argument."""
    return [
        _step(_IF_EQUAL, number, when_false=4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(test, value, when_false=1),
        _step(_RETURN, SECCOMP_RET_ALLOW),
        _step(_RETURN, otherwise),
    ]


def _step(code: int, value: int, *, when_true: int = 0, when_false: int = 0) -> bytes:
    """One BPF instruction; `when_true` and `when_false` are the numbers of instructions to skip."""
    return struct.pack("<HBBI", code, when_true, when_false, value)
