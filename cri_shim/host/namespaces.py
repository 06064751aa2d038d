"""Creates, pins, enters and removes network namespaces.

Rules:
- Every function blocks. A coroutine calls it through `kernel_call`. Namespaces are changed in a throw-away thread only,
  so that no other thread of the daemon leaves the host's namespaces.
- A namespace is complete when its name exists: `lo` is up and the sysctls are set before it is pinned. A failed
  creation leaves nothing.
- A sysctl's name must stay below `net` in /proc/sys, and its file is opened without following links. The value must be
  one line of printable ASCII.
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
"""The ID of the mount that /run/netns was found to lie on, so that all mounts of the node are read only once."""
_SYSCTL_PART = re.compile(r"[A-Za-z0-9_.\-]+")
_SYSCTL_VALUE = re.compile(r"[\x20-\x7e\t]+")


def create_netns(path: Path, sysctls: Mapping[str, str], netns_fd: int | None = None) -> None:
    """Create a network namespace with `lo` up and `sysctls` set, and pin it at `path`; blocking.

    With `netns_fd` that namespace is pinned instead of a new one: a namespace of another user namespace has to be
    created elsewhere (`userns`). `ip netns` lists names in /run/netns. The directory of `path` is created if missing.

    Raises:
        InvalidArgumentError: a sysctl that does not belong to a network namespace, or a value that the kernel rejects.
        FileExistsError: `path` exists.
        OSError: from the kernel, with the file or the step.
    """
    values = _checked_sysctls(sysctls)
    _prepare_directory(path.parent)
    # A bind mount needs a file as mount point. `ip netns` creates it with mode 0, too.
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
    """Set sysctls of interfaces in the namespace at `path`, in the mapping's order; blocking.

    A sysctl in `optional` is skipped if its interface does not exist. Raises InvalidArgumentError for an unknown
    sysctl, a missing interface and a value that the kernel rejects, OSError as `run_in_netns` does.
    """
    values = _checked_sysctls(sysctls)

    def write() -> None:
        for file, (name, value) in values.items():
            # net/FAMILY/KIND/INTERFACE/...: the directory exists as long as the interface does.
            directory = "/".join(file.split("/")[:4])
            if os.path.isdir(f"/proc/sys/{directory}"):
                _write_sysctl(file, name, value)
            elif name not in optional:
                raise InvalidArgumentError(
                    f"sysctl {name}: the pod has no interface {quoted(directory.rpartition('/')[2])}"
                )

    run_in_netns(path, write)


def remove_netns(path: Path) -> None:
    """Unmount and remove the name `path`, which need not exist; blocking.

    The kernel removes the namespace itself with its last user: a process in it, or an open descriptor.
    """
    mounts.unmount(path)
    path.unlink(missing_ok=True)


def is_netns(path: Path) -> bool:
    """Whether `path` is a network namespace. After a reboot it is the bare file of the mount point. Blocking."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return False
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == syscalls.CLONE_NEWNET
    except OSError:  # ENOTTY: not a file of nsfs
        return False
    finally:
        os.close(fd)


def run_in_netns(path: Path, function: Callable[[], T]) -> T:
    """Call `function` in a thread inside the namespace at `path`; blocking.

    A socket that it opens stays in that namespace, also if other threads use it later. Raises what `function` raises,
    and OSError if `path` is not a network namespace.
    """

    def enter() -> T:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot enter the network namespace: {error.strerror}", str(path)
            ) from error
        finally:
            os.close(fd)
        return function()

    return in_throwaway_thread(enter, name="netns-enter")


def sysctl_file(name: str) -> str:
    """The file of a sysctl of a network namespace, relative to /proc/sys. Pure.

    Accepts both spellings of sysctl.d(5): `net.ipv4.ip_forward` and `net/ipv4/ip_forward`. The first of `.` and `/` in
    the name is the separator; the other one then stands for the separator's character in an interface's name.

    Raises InvalidArgumentError for a name that is not below `net`.
    """
    separator = next((letter for letter in name if letter in "./"), "")
    name_in_files = name.translate(str.maketrans("./", "/.")) if separator == "." else name
    parts = name_in_files.split("/")
    if len(parts) < 2 or parts[0] != "net":
        raise InvalidArgumentError(
            f"sysctl {quoted(name)} does not belong to a network namespace (net.*)"
        )
    for part in parts:
        if part in (".", "..") or _SYSCTL_PART.fullmatch(part) is None:
            raise InvalidArgumentError(
                f"sysctl {quoted(name)}: {quoted(part)} is not a valid part of a name"
            )
    return "/".join(parts)


def _checked_sysctls(sysctls: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Name and value of each sysctl, by its file."""
    values = {sysctl_file(name): (name, value) for name, value in sysctls.items()}
    for name, value in values.values():
        if _SYSCTL_VALUE.fullmatch(value) is None:
            raise InvalidArgumentError(
                f"sysctl {name}: the value {quoted(value)} is not one line of printable ASCII"
            )
    return values


def _write_sysctl(file: str, name: str, value: str) -> None:
    # /proc/sys/net shows the network namespace of the opening thread.
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
                f"sysctl {name}: the kernel has no such sysctl, or a network namespace may not set it"
            ) from error
        if error.errno in (errno.EINVAL, errno.ERANGE):
            raise InvalidArgumentError(
                f"sysctl {name}: the kernel rejected the value {quoted(value)}: {error.strerror}"
            ) from error
        raise OSError(error.errno, f"sysctl {name}: {error.strerror}") from error


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = fcntl.ioctl(control, SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        _, flags = _IFREQ.unpack(request)
        fcntl.ioctl(control, SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | IFF_UP))


def _prepare_directory(directory: Path) -> None:
    """Create `directory`. Make /run/netns a shared mount, as `ip netns add` does.

    `ip netns add` bind-mounts /run/netns onto itself, with all pins in it, unless it is a shared mount. If /run is not
    shared, that covers our pins with copies: removing a pin then reaches the copy only, and the namespace lives until
    the next boot. Doing the same before the first pin prevents it.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    real = directory.resolve()
    if real != paths.NETNS_DIR.resolve():
        return
    lock = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _mount_id(lock) in _known_shared:
            return
        # `ip netns add` takes the same lock. Closing the descriptor releases it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        lies_on = mount_of(real, read_mounts())
        if lies_on is None or not lies_on.is_shared:
            if lies_on is None or lies_on.target != real:
                syscalls.mount(real, real, None, syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.mount("none", real, None, syscalls.MS_SHARED | syscalls.MS_REC)
    finally:
        os.close(lock)
    # Open it again: the first descriptor leads to the directory below a mount that was made above.
    there = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _known_shared.clear()
        _known_shared.add(_mount_id(there))
    finally:
        os.close(there)


def _mount_id(fd: int) -> int:
    """The ID of the mount of a descriptor's file (proc(5), /proc/PID/fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
