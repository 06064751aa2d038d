"""The built-in seccomp profiles: the system calls that a container, and a pause container, may use.

Rules:
- The table lists what is allowed. Any other call fails with EPERM. For calls newer than the newest one listed, runc
  returns ENOSYS instead, so that a C library falls back.
- Calls are grouped by purpose, each in one group. The runtime skips a name that the architecture or library lacks.
- Calls that are useless or dangerous without a capability are allowed only with it.
- Left out on purpose: io_uring and userfaultfd (their history of kernel holes), the kernel keyring (not namespaced),
  modules and kexec, swap, obsolete calls.
- Reviewed against the kernel's calls up to 6.18. Of those since 6.0, extended attributes by descriptor, file
  attributes, LSM attributes, listing mounts and the new futexes are allowed, since they do what older calls do.
"""

from __future__ import annotations

from typing import Final

from cri_shim.oci.spec.seccomp import (
    ARCHITECTURES,
    ArchitectureMap,
    Argument,
    Condition,
    Profile,
    Rule,
)

_ALLOW: Final = "SCMP_ACT_ALLOW"
_ERRNO: Final = "SCMP_ACT_ERRNO"
_EPERM = 1
_ENOSYS = 38

ALWAYS: dict[str, str] = {
    "open, read, write and hand over files": """
        close close_range copy_file_range creat dup dup2 dup3 fadvise64 fadvise64_64 fallocate fcntl fcntl64
        fdatasync flock fsync ftruncate ftruncate64 ioctl lseek _llseek open openat openat2 pipe pipe2 pread64
        preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync
        sync_file_range sync_file_range2 arm_sync_file_range arm_fadvise64_64 syncfs tee truncate truncate64
        vmsplice write writev cachestat""",
    "directories, names and links": """
        chdir fchdir getcwd getdents getdents64 link linkat mkdir mkdirat mknod mknodat name_to_handle_at readdir
        readlink readlinkat rename renameat renameat2 rmdir symlink symlinkat unlink unlinkat""",
    "what a file is: mode, owner, times, attributes": """
        access chmod chown chown32 faccessat faccessat2 fchmod fchmodat fchmodat2 fchown fchown32 fchownat
        fgetxattr flistxattr fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 futimesat getxattr
        getxattrat lchown lchown32 lgetxattr listxattr listxattrat llistxattr lremovexattr lsetxattr lstat lstat64
        newfstatat removexattr removexattrat setxattr setxattrat stat stat64 statfs statfs64 statx umask utime
        utimensat utimensat_time64 utimes ustat file_getattr file_setattr listmount statmount""",
    "memory": """
        brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2
        mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
        pkey_mprotect remap_file_pages""",
    "processes and threads": """
        execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid
        gettid get_robust_list get_thread_area ioprio_get ioprio_set kill nice pause pidfd_open pidfd_send_signal prctl
        prlimit64 process_mrelease restart_syscall rseq set_robust_list set_thread_area set_tid_address setpgid
        setpriority setrlimit setsid tgkill times tkill ugetrlimit vfork wait4 waitid waitpid""",
    "scheduling": """
        getcpu sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
        sched_setparam sched_setscheduler sched_yield""",
    "users, groups and capabilities": """
        capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid
        getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
        setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
        setuid setuid32""",
    "restricting oneself": """
        landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr seccomp""",
    "signals": """
        rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
        rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaction sigaltstack signal signalfd signalfd4 sigpending
        sigprocmask sigreturn sigsuspend""",
    "time": """
        adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
        clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
        timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64""",
    "waiting for events": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
        eventfd eventfd2 fanotify_mark futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
        inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
        io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 pselect6_time64
        select _newselect""",
    # socketcall has its arguments behind a pointer, so a filter can't check the address family. The 32-bit C libraries
    # of the big distributions have no other way to open a socket.
    "sockets (opening one is below)": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
        recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair""",
    "System V and POSIX IPC": """
        ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
        mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop
        semtimedop_time64 shmat shmctl shmdt shmget""",
    "about the system": "getrandom sysinfo uname",
}

WITH_CAPABILITY: dict[str, str] = {
    "DAC_READ_SEARCH": "open_by_handle_at",
    "SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr
        move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns
        syslog umount umount2 unshare""",
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "SYS_TTY_CONFIG": "vhangup",
    "SYSLOG": "syslog",
    "BPF": "bpf",
    "PERFMON": "perf_event_open",
}

ON_ARCHITECTURE: dict[str, str] = {
    "amd64": "arch_prctl modify_ldt uprobe uretprobe",
    "386": "modify_ldt",
    "arm": "breakpoint cacheflush set_tls",
    "arm64": "breakpoint cacheflush set_tls",
    "ppc64le": "swapcontext",
    "riscv64": "riscv_flush_icache riscv_hwprobe",
    "s390x": "s390_guarded_storage s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr s390_sthyi",
}

PAUSE_ALWAYS = """
    access arch_prctl brk chdir clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close
    close_range dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 execve exit
    exit_group faccessat fcntl fcntl64 fstat fstat64 fstatfs futex futex_time64 getcwd getdents64 getegid geteuid getgid
    getpgid getpgrp getpid getppid getrandom getrlimit getsid gettid getuid ioctl kill lseek _llseek madvise mmap mmap2
    mprotect mremap munmap nanosleep newfstatat open openat pause pipe2 poll ppoll ppoll_time64 prctl pread64
    prlimit64 pselect6 read readlink readlinkat readv restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 sched_getaffinity sched_yield select
    set_robust_list set_tid_address setitimer setpgid setsid set_tls sigaltstack signalfd signalfd4 sigreturn
    stat stat64 statx tgkill ugetrlimit uname wait4 waitid waitpid write writev
"""
"""The calls of a program that waits for signals and children, and of the runtime's last steps before it. A long filter
takes long to compile: the containers' profile would add 7 ms to the creation of a pause container (22 ms), this one
adds less
than 1."""

_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""

_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX and PER_LINUX32, each with and without UNAME26, and the query of the present one."""

_LAST_PLAIN_FAMILY = 38
_OTHER_FAMILIES = (39, 41, 42, 43, 44, 45)
"""Socket families up to AF_MCTP (45) are allowed, except AF_ALG (38, the kernel's cryptography, CVE-2026-31431) and
AF_VSOCK (40, which reaches the hypervisor past every network policy). Those above 38 are compared for equality: the
filter
compares 64 bits where the kernel uses 32, so with "greater than" a number with a high bit set would pass."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(sorted(text.split()))


def _without_new_namespaces() -> list[Rule]:
    """Without CAP_SYS_ADMIN: new processes and threads, but no new namespaces."""
    admin = "CAP_SYS_ADMIN"
    return [
        Rule(
            _ALLOW,
            ("clone",),
            args=(Argument(0, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ"),),
            excludes=Condition(caps=(admin,), arches=("s390x",)),
        ),
        # On s390x the first two arguments of clone are swapped.
        Rule(
            _ALLOW,
            ("clone",),
            args=(Argument(1, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ"),),
            includes=Condition(arches=("s390x",)),
            excludes=Condition(caps=(admin,)),
        ),
        # The flags of clone3 are behind a pointer, where a filter can't check them. ENOSYS makes C libraries use clone.
        Rule(_ERRNO, ("clone3",), errno_ret=_ENOSYS, excludes=Condition(caps=(admin,))),
    ]


def _conditional() -> list[Rule]:
    """Rules that depend on arguments or on the kernel's version."""
    return [
        *(
            Rule(_ALLOW, ("personality",), args=(Argument(0, value, "SCMP_CMP_EQ"),))
            for value in _PERSONALITIES
        ),
        Rule(_ALLOW, ("socket",), args=(Argument(0, _LAST_PLAIN_FAMILY, "SCMP_CMP_LT"),)),
        *(
            Rule(_ALLOW, ("socket",), args=(Argument(0, value, "SCMP_CMP_EQ"),))
            for value in _OTHER_FAMILIES
        ),
        # Before 4.8 a tracer could change the call after it had passed the filter.
        Rule(
            _ALLOW,
            ("process_vm_readv", "process_vm_writev", "ptrace"),
            includes=Condition(min_kernel="4.8"),
            excludes=Condition(caps=("CAP_SYS_PTRACE",)),
        ),
        *_without_new_namespaces(),
    ]


def _container_profile() -> Profile:
    always = _names(" ".join(ALWAYS.values()))
    return Profile(
        default_action=_ERRNO,
        default_errno_ret=_EPERM,
        arch_map=tuple(
            ArchitectureMap(architectures[0], architectures[1:])
            for architectures in dict.fromkeys(ARCHITECTURES.values())
        ),
        syscalls=(
            Rule(_ALLOW, always),
            *_conditional(),
            *(
                Rule(_ALLOW, _names(calls), includes=Condition(arches=(arch,)))
                for arch, calls in ON_ARCHITECTURE.items()
            ),
            *(
                Rule(_ALLOW, _names(calls), includes=Condition(caps=(f"CAP_{capability}",)))
                for capability, calls in WITH_CAPABILITY.items()
            ),
        ),
    )


def _pause_profile() -> Profile:
    """For the node's own architecture only, which the pause program is built for."""
    return Profile(
        default_action=_ERRNO,
        default_errno_ret=_EPERM,
        arch_map=tuple(
            ArchitectureMap(native)
            for native in dict.fromkeys(a[0] for a in ARCHITECTURES.values())
        ),
        syscalls=(
            Rule(_ALLOW, _names(PAUSE_ALWAYS)),
            *_without_new_namespaces(),
        ),
    )


CONTAINER = _container_profile()
PAUSE = _pause_profile()
