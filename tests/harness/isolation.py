"""Isolates a test session: its own mount and network namespaces, and a unique name.

Rules:
- `Session.enter` moves the calling thread, so it is called once, on the main thread, before anything is started:
  daemons, monitors and containers are born into the new namespaces.
- Inside, mounts propagate as on a host that systemd booted, and the places that container runtimes of a node share
  (/run/netns, /var/lib/cni, /run/runc) are empty and private. Nothing that tests do to links or packet rules reaches
  the machine.
- Processes, cgroups and files are still the machine's. A session that is killed leaves some behind; the next one finds
  them by the lock file that its death released, and takes them away.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import struct
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.harness import procs

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN_PREFIX = "cri-t"
LOCK_DIR = Path("/run")
KATA_DIRS = (
    Path("/run/vc/sbs"),
    Path("/run/vc/vm"),
    Path("/run/kata-containers/shared/sandboxes"),
    Path("/run/kata-containers/containers-mapping"),
)
"""Directories in which kata-runtime always keeps files of each object. They are not configurable."""
SHIM_DIRS = (Path("/run/containerd/s"), Path("/run/containerd/runc"))
"""Directories of shims' sockets, and of the state of a runc that a shim drives."""
RUNTIME_DIRS = (
    *(Path("/run/runc"), Path("/run/crun"), Path("/run/runsc")),
    *(*KATA_DIRS, *SHIM_DIRS),
)
"""The runtimes' default state directories. cri-shim sets others where it can."""
PRIVATE_DIRS = (Path("/run/netns"), Path("/var/lib/cni"), *RUNTIME_DIRS)
CGROUP_ROOT = Path("/sys/fs/cgroup")

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_REC, _MS_PRIVATE, _MS_SHARED = 0x4000, 1 << 18, 1 << 20
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)


class Session:
    """A test session, which owns a token and everything whose name contains it."""

    def __init__(self) -> None:
        self.token = f"{TOKEN_PREFIX}{secrets.token_hex(2)}"
        self._lock: IO[str] | None = None
        self.namespaces: frozenset[str] = frozenset()
        """The mount and network namespaces of this session, once entered."""

    def claim(self) -> None:
        """Reserve the token, and clean up after dead sessions."""
        for lock_file in LOCK_DIR.glob(f"{TOKEN_PREFIX}*.lock"):
            with lock_file.open() as lock:
                if _locked(lock):
                    remove_all(lock_file.stem)
                    lock_file.unlink(missing_ok=True)
        self._lock = (LOCK_DIR / f"{self.token}.lock").open("w")
        if not _locked(self._lock):
            raise RuntimeError(f"{self._lock.name} is held by somebody else: run the tests again")

    def enter(self) -> None:
        """Move this thread, and processes that it starts from now on, to new namespaces. Raises: OSError."""
        _call("unshare", _libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET))
        # Cut off from the machine first, then shared among ourselves: containers may ask for propagation.
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        _mount(None, "/", None, _MS_REC | _MS_SHARED)
        for directory in PRIVATE_DIRS:
            directory.mkdir(parents=True, exist_ok=True)
            _mount("none", str(directory), "tmpfs", 0)
        _bring_up("lo")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self.namespaces = frozenset(procs.namespaces_of("thread-self"))

    def release(self) -> None:
        """Clean up, and release the token."""
        if self._lock is not None:
            remove_all(self.token)
            Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def remove_all(token: str) -> None:
    """Kill every process and remove every cgroup and file whose name contains `token`; mounts go with them."""
    deadline = time.monotonic() + 10
    while (left := _alive(token)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    for point in _mounts_of(token):
        _libc.umount2(os.fsencode(point), 2 | 8)  # MNT_DETACH | UMOUNT_NOFOLLOW
    for cgroup in _cgroups_of(token):
        try:
            cgroup.rmdir()
        except OSError:
            # Busy with a process that can't die yet; the next session tries again, by the same name.
            continue
    for tree in trees_of(token):
        shutil.rmtree(tree, ignore_errors=True)


def trees_of(token: str) -> list[Path]:
    """The harness's directories with the token in their names."""
    return [
        path for base in (LOCK_DIR, disk_dir()) for path in base.glob(f"{token}*") if path.is_dir()
    ]


def disk_dir() -> Path:
    """The parent of daemons' roots: the first usual place whose file system supports overlay upper layers."""
    for place in ("/var/tmp", "/tmp", "/run"):
        if _file_system(place) != "overlay":
            return Path(place)
    return Path("/dev/shm")


def _file_system(path: str) -> str:
    kinds = {"/": ""}
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kinds[before.split()[4]] = after.split()[0]
    return kinds[max((p for p in kinds if Path(path).is_relative_to(p)), key=len)]


def _alive(token: str) -> list[int]:
    """Processes with the token in their arguments or cgroup."""
    found = procs.processes_naming(token)
    return [process.pid for process in found if not process.zombie]


def _mounts_of(token: str) -> list[str]:
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    return [point for line in reversed(lines) if token in (point := line.split()[4])]


def _cgroups_of(token: str) -> Iterator[Path]:
    """Deepest first, of every hierarchy."""
    for top, directories, _ in os.walk(CGROUP_ROOT, topdown=False):
        for name in directories:
            path = Path(top, name)
            if token in str(path):
                yield path


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", interface.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(
            sock, _SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), flags | _IFF_UP)
        )


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _call(f"mount {target}", _libc.mount(*encoded, flags, None))


def _call(what: str, result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
