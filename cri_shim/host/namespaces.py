"""Network namespaces: made and pinned under a name, entered for one function, removed.

Rules:
- Every function blocks; from a coroutine, call through `kernel_call`. What changes a namespace happens in a
  throw-away thread, so no other thread of the daemon ever leaves the host's.
- A namespace is ready when it has its name: `lo` is up and the sysctls are set before it is pinned. When creating
  fails, nothing stays.
- A sysctl's name and value are checked as they will be used: the name stays below `net` in /proc/sys, opened without
  following links, and the value is one line of printable text.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from typing import TYPE_CHECKING, TypeVar

from cri_shim import paths
from cri_shim.errors import InvalidArgumentError
from cri_shim.host import mounts, syscalls
from cri_shim.host.mountinfo import mount_of, read_mounts
from cri_shim.host.throwaway import in_throwaway_thread
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

T = TypeVar("T")

# <linux/sockios.h>, <linux/if.h>, <linux/nsfs.h>
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
NS_GET_NSTYPE = 0xB703

_IFREQ = struct.Struct("16sH22x")
_THIS_NETNS = "/proc/thread-self/ns/net"
_known_shared: set[int] = set()
"""The mount that /run/netns was found to lie on, by its number: looking through all mounts once is enough."""
_SYSCTL_PART = re.compile(r"[A-Za-z0-9_.\-]+")
_SYSCTL_VALUE = re.compile(r"[\x20-\x7e\t]+")


def create_netns(path: Path, sysctls: Mapping[str, str], netns_fd: int | None = None) -> None:
    """Make a network namespace with `lo` up and `sysctls` set, and pin it at `path`; blocking.

    With `netns_fd` it is that one, which was made elsewhere, since it belongs to another user namespace. The name
    appears to `ip netns` when it is in /run/netns. Its directory is made if missing.

    Raises:
        InvalidArgumentError: a sysctl that isn't one of a network namespace, or a value the kernel refuses.
        FileExistsError: something has that name.
        OSError: the kernel refused, with the file or step in it.
    """
    values = _checked_sysctls(sysctls)
    _prepare_directory(path.parent)
    # A mount needs a file to lie on; `ip netns` makes it without any mode as well.
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o000))

    def make() -> None:
        if netns_fd is None:
            syscalls.unshare(syscalls.CLONE_NEWNET)
        else:
            syscalls.setns(netns_fd, syscalls.CLONE_NEWNET)
        _bring_up_loopback()
        for file, (name, value) in values.items():
            _write_sysctl(file, name, value)
        syscalls.mount(_THIS_NETNS, path, None, syscalls.MS_BIND)

    try:
        in_throwaway_thread(make, name="netns-create")
    except BaseException:
        remove_netns(path)
        raise


def set_netns_sysctls(
    path: Path, sysctls: Mapping[str, str], optional: Collection[str] = ()
) -> None:
    """Set sysctls of the interfaces in the namespace `path`, in their order; blocking.

    Those in `optional` are passed over where their interface isn't there. Raises InvalidArgumentError for what
    isn't there or not taken by the kernel, OSError as `run_in_netns`.
    """
    values = _checked_sysctls(sysctls)

    def write() -> None:
        for file, (name, value) in values.items():
            # net/FAMILY/KIND/INTERFACE/...: the directory comes and goes with the interface.
            directory = "/".join(file.split("/")[:4])
            if os.path.isdir(f"/proc/sys/{directory}"):
                _write_sysctl(file, name, value)
            elif name not in optional:
                raise InvalidArgumentError(
                    f"sysctl {name}: the pod has no interface {quoted(directory.rpartition('/')[2])}"
                )

    run_in_netns(path, write)


def remove_netns(path: Path) -> None:
    """Take the name away, whatever of it there is; blocking.

    The namespace itself goes with its last user: a process in it, an open descriptor.
    """
    mounts.unmount(path)
    path.unlink(missing_ok=True)


def is_netns(path: Path) -> bool:
    """Whether `path` names a network namespace (and not, say, the bare file that a reboot left); blocking."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return False
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == syscalls.CLONE_NEWNET
    except OSError:  # ENOTTY and its like: no namespace file at all
        return False
    finally:
        os.close(fd)


def run_in_netns(path: Path, function: Callable[[], T]) -> T:
    """Call `function` in a thread that is in the namespace `path`; blocking.

    A socket opened there stays in that namespace, whoever uses it afterwards. Raises what `function` raises, and
    OSError when `path` is no network namespace.
    """

    def enter() -> T:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
        except OSError as error:
            raise OSError(error.errno, f"can't enter it: {error.strerror}", str(path)) from error
        finally:
            os.close(fd)
        return function()

    return in_throwaway_thread(enter, name="netns-enter")


def sysctl_file(name: str) -> str:
    """Where a sysctl of a network namespace is, relative to /proc/sys; pure.

    Both spellings of sysctl.d(5) are taken: `net.ipv4.ip_forward` and `net/ipv4/ip_forward`. Whichever separator
    comes first separates; the other one is then part of an interface's name, with dot and slash exchanged.

    Raises InvalidArgumentError for what is not below `net` or would leave it.
    """
    separator = next((letter for letter in name if letter in "./"), "")
    name_in_files = name.translate(str.maketrans("./", "/.")) if separator == "." else name
    parts = name_in_files.split("/")
    if len(parts) < 2 or parts[0] != "net":
        raise InvalidArgumentError(
            f"sysctl {quoted(name)} is not one of a network namespace (net.*)"
        )
    for part in parts:
        if part in (".", "..") or _SYSCTL_PART.fullmatch(part) is None:
            raise InvalidArgumentError(
                f"sysctl {quoted(name)}: {quoted(part)} can't be part of a name"
            )
    return "/".join(parts)


def _checked_sysctls(sysctls: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Name and value of each by its file."""
    values = {sysctl_file(name): (name, value) for name, value in sysctls.items()}
    for name, value in values.values():
        if _SYSCTL_VALUE.fullmatch(value) is None:
            raise InvalidArgumentError(
                f"sysctl {name}: the value {quoted(value)} is not one line of printable ASCII"
            )
    return values


def _write_sysctl(file: str, name: str, value: str) -> None:
    # /proc/sys/net shows the namespace of the thread that opens it.
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(f"/proc/sys/{file}", flags)
        try:
            os.write(fd, value.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES):
            raise InvalidArgumentError(
                f"sysctl {name}: this kernel has none of that name that a network namespace may set"
            ) from error
        if error.errno in (errno.EINVAL, errno.ERANGE):
            raise InvalidArgumentError(
                f"sysctl {name}: the kernel refuses the value {quoted(value)}"
            ) from error
        raise OSError(error.errno, f"sysctl {name}: {error.strerror}") from error


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = fcntl.ioctl(control, SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        _, flags = _IFREQ.unpack(request)
        fcntl.ioctl(control, SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | IFF_UP))


def _prepare_directory(directory: Path) -> None:
    """Make `directory`; /run/netns is left as `ip netns add` wants it.

    `ip netns add` binds /run/netns onto itself, with all that is pinned in it, unless it is a shared mount already.
    Where /run itself isn't shared, that hides our pins under a copy of them: removing one then reaches the copy only,
    and the namespace lives until the next boot. Doing the same before the first pin keeps that from happening.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    real = directory.resolve()
    if real != paths.NETNS_DIR.resolve():
        return
    lock = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _mount_id(lock) in _known_shared:
            return
        fcntl.flock(lock, fcntl.LOCK_EX)  # closing gives it back
        lies_on = mount_of(real, read_mounts())
        if lies_on is None or not lies_on.is_shared:
            if lies_on is None or lies_on.target != real:
                syscalls.mount(real, real, None, syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.mount("none", real, None, syscalls.MS_SHARED | syscalls.MS_REC)
    finally:
        os.close(lock)
    # Opened again: a mount that was made above lies on what the first descriptor leads to.
    there = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _known_shared.clear()
        _known_shared.add(_mount_id(there))
    finally:
        os.close(there)


def _mount_id(fd: int) -> int:
    """The mount that a descriptor's file lies on (proc(5), /proc/PID/fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
