"""Checks once, before the first integration test, that the machine has what the tests need.

A missing tool fails the run with one line that says what installs it. Only tests of gVisor are skipped without it.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cri_shim.image.builtin import is_dynamic

PLUGIN_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
PLUGINS = ("bridge", "host-local", "portmap", "loopback")
TOOLS: dict[str, str] = {
    "runc": "runc",
    "conmon": "conmon",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "catatonit": "catatonit",
    "busybox": "busybox-static",
}
"""Command and the Debian package that has it."""
SYSTEM_DIRS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that the machine lacks."""

    what: str
    package: str = ""
    remedy: str = ""


def missing(
    *,
    path: str | None = None,
    plugin_dirs: tuple[Path, ...] = PLUGIN_DIRS,
    runsc: bool = False,
) -> list[Missing]:
    """Everything that is missing. `runsc` is required if gVisor is tested."""
    path = path if path is not None else search_path()
    found = []
    if os.geteuid() != 0:
        found.append(Missing("root", remedy="run the tests as root, for example sudo tests/run.sh"))
    for command, package in (TOOLS | ({"runsc": "runsc"} if runsc else {})).items():
        if shutil.which(command, path=path) is None:
            found.append(Missing(command, package))
    busybox = shutil.which("busybox", path=path)
    if busybox is not None and is_dynamic(Path(busybox).read_bytes()):
        found.append(Missing("a statically linked busybox", "busybox-static"))
    found.extend(
        Missing(f"CNI plugin {plugin}", "containernetworking-plugins")
        for plugin in PLUGINS
        if not any(os.access(directory / plugin, os.X_OK) for directory in plugin_dirs)
    )
    if ctypes.util.find_library("archive") is None and not list(_libraries("libarchive.so.13")):
        found.append(Missing("libarchive.so.13", "libarchive13"))
    if not any(
        line.split()[-1] == "overlay" for line in Path("/proc/filesystems").read_text().splitlines()
    ):
        found.append(Missing("overlayfs in the kernel", remedy="modprobe overlay"))
    if "cgroup" not in Path("/proc/self/mountinfo").read_text():
        found.append(Missing("cgroups", remedy="mount them on /sys/fs/cgroup"))
    return found


def sentence(lacking: list[Missing]) -> str:
    """A line that says what is missing, and which command installs it."""
    packages = sorted({item.package for item in lacking if item.package})
    remedies = [item.remedy for item in lacking if item.remedy]
    if packages:
        remedies.append(f"apt-get install -y {' '.join(packages)}")
    return (
        f"this machine can't run the integration tests: missing {', '.join(item.what for item in lacking)}; "
        f"do: {'; '.join(remedies)}"
    )


def search_path() -> str:
    """PATH, with the system's directories that an unprivileged shell leaves out."""
    return f"{os.environ.get('PATH', '')}:{SYSTEM_DIRS}"


def _libraries(name: str) -> list[Path]:
    return [path for base in (Path("/usr/lib"), Path("/lib")) for path in base.glob(f"*/{name}")]
