"""Reads the facts about this node that the spec builders need, once at start, from the kernel's files.

`host_devices` and `device_nodes` read /dev at each call, since devices come and go.
"""

from __future__ import annotations

import os
import platform
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.config.values import CAPABILITIES
from cri_shim.errors import ConfigError
from cri_shim.host.files import read_bounded
from cri_shim.host.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from cri_shim.kernel_call import working_on
from cri_shim.oci.spec.checks import refuse
from cri_shim.oci.spec.inputs import DeviceNode, NodeFacts, Ulimit
from cri_shim.oci.spec.seccomp import parse_profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.config.model import SecuritySettings
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.oci.spec.seccomp import Profile

MAX_PROFILE_BYTES = 4 << 20
MAX_DEVICE_ENTRIES = 20_000
"""Entries of a directory of devices: more than any /dev has, and read quickly."""
_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_PERSONAL_DEVICES = ("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/.udev")  # noqa: S108 - names, not files of ours
"""Every container has its own ones."""


def read_node_facts(
    settings: SecuritySettings, cgroups: Cgroups, root: Path = Path("/")
) -> NodeFacts:
    """Read the facts. `root` replaces / in tests. Raises ConfigError for a seccomp profile that cannot be read."""
    release = platform.release()
    kernel = re.match(r"(\d+)\.(\d+)", release)
    status = _proc_status(root)
    cgroup_v2 = cgroups.mode == "v2"
    return NodeFacts(
        arch=platform.machine(),
        kernel=(int(kernel[1]), int(kernel[2])) if kernel else (0, 0),
        cgroup_v2=cgroup_v2,
        cgroup_namespace=cgroup_v2,
        capabilities=_capabilities(status, root),
        default_capabilities=tuple(settings.default_capabilities),
        default_ulimits={
            name: Ulimit(limit.soft, limit.hard) for name, limit in settings.default_ulimits.items()
        },
        default_sysctls={str(k): str(v) for k, v in settings.default_sysctls.items()},
        umask=int(settings.umask),
        min_oom_score_adj=_min_oom_score_adj(settings, status, root),
        seccomp_available="Seccomp" in status,
        default_seccomp=_default_seccomp(settings.seccomp_default_profile),
        apparmor_default_profile=settings.apparmor_profile,
        swap_accounting=_has_swap_accounting(root, cgroup_v2=cgroup_v2),
        cpus=_cpus(root),
        hugepage_sizes=_hugepage_sizes(root)
        if "hugetlb" in cgroups.limiting_controllers
        else frozenset(),
        lack_of_files_limits=cgroups.lack_of_files_limits,
        extra_masked_paths=tuple(
            f"/{path.relative_to(root)}"
            for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle"))
        ),
    )


def boot_id(root: Path = Path("/")) -> str:
    """The kernel's random ID of this boot."""
    return (root / "proc/sys/kernel/random/boot_id").read_text().strip()


def host_devices(dev_dir: Path = Path("/dev")) -> tuple[DeviceNode, ...]:
    """All device nodes of the host, for a privileged container."""
    return device_nodes(str(dev_dir))


def device_nodes(path: str) -> tuple[DeviceNode, ...]:
    """The device nodes at a host path: a single one, those in a directory, or none.

    Links in the path are followed, links below a directory are not. The path is opened once, so that it cannot change
    meanwhile. Raises InvalidArgumentError for a directory with more than `MAX_DEVICE_ENTRIES` entries.
    """
    working_on("devices.host_path", path)
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            return tuple(sorted(_nodes_below(fd, path.rstrip("/")), key=lambda node: node.path))
        node = _node(info, shown_as=path)
        return (node,) if node else ()
    finally:
        os.close(fd)


def _nodes_below(top: int, shown_as: str) -> Iterator[DeviceNode]:
    """The device nodes in a directory. Skips other files, and directories that cannot be read or have vanished."""
    left = MAX_DEVICE_ENTRIES
    waiting = ["."]
    while waiting:
        folder = waiting.pop()
        try:
            fd = openat2(top, folder, os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
        except OSError:
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    left -= 1
                    name = entry.name if folder == "." else f"{folder}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if f"{shown_as}/{name}" not in _PERSONAL_DEVICES:
                            waiting.append(name)
                    elif entry.name != "console" and not entry.is_file(follow_symlinks=False):
                        with suppress(OSError):
                            info = entry.stat(follow_symlinks=False)
                            if node := _node(info, shown_as=f"{shown_as}/{name}"):
                                yield node
        except OSError:
            continue
        finally:
            os.close(fd)
        if left < 0:
            refuse(
                "devices.host_path",
                shown_as or "/",
                f"contains more than {MAX_DEVICE_ENTRIES} files: name the devices, or a directory of devices only",
            )


def _node(info: os.stat_result, *, shown_as: str) -> DeviceNode | None:
    kind = "c" if stat.S_ISCHR(info.st_mode) else "b" if stat.S_ISBLK(info.st_mode) else ""
    if not kind:
        return None
    return DeviceNode(
        path=shown_as,
        type=kind,
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        file_mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
    )


def _proc_status(root: Path) -> dict[str, str]:
    lines = (root / "proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _default_seccomp(path: Path | None) -> Profile | None:
    if path is None:
        return None
    try:
        return parse_profile(read_bounded(path, MAX_PROFILE_BYTES), name=str(path))
    except OSError as error:
        raise ConfigError(f"security.seccomp_default_profile: {path}: {error.strerror}") from error


def _capabilities(status: dict[str, str], root: Path) -> tuple[str, ...]:
    held = int(status["CapPrm"], 16) & int(status["CapBnd"], 16)
    last = int((root / "proc/sys/kernel/cap_last_cap").read_text())
    return tuple(
        name for number, name in enumerate(CAPABILITIES) if number <= last and held >> number & 1
    )


def _min_oom_score_adj(
    settings: SecuritySettings, status: dict[str, str], root: Path
) -> int | None:
    """The lowest value that the daemon may set, None for any. Lowering it needs CAP_SYS_RESOURCE, see proc(5)."""
    may_lower = int(status["CapEff"], 16) >> CAPABILITIES.index("SYS_RESOURCE") & 1
    if settings.restrict_oom_score_adj == "off" or (
        settings.restrict_oom_score_adj == "auto" and may_lower
    ):
        return None
    return int((root / "proc/self/oom_score_adj").read_text())


def _has_swap_accounting(root: Path, *, cgroup_v2: bool) -> bool:
    if cgroup_v2:
        # Only cgroups below the root have the file, unless the kernel was started with swapaccount=0.
        return any((root / "sys/fs/cgroup").glob("*/memory.swap.max"))
    return (root / "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()


def _cpus(root: Path) -> int:
    """The online CPUs without those that the kernel isolates (`isolcpus`). 0 if the kernel does not tell."""
    directory = root / "sys/devices/system/cpu"
    try:
        online, isolated = (
            _in_list((directory / name).read_text()) for name in ("online", "isolated")
        )
    except OSError:
        return 0
    return len(online - isolated)


def _in_list(text: str) -> set[int]:
    """The numbers of a list like `0-3,7`; none of an empty one."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return found


def _hugepage_sizes(root: Path) -> frozenset[str]:
    """The page sizes as the runtime-spec names them: `hugepages-2048kB` -> `2MB`."""
    sizes = set()
    for entry in (root / "sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        size = int(entry.name.removeprefix("hugepages-").removesuffix("kB"))
        for unit in ("KB", "MB", "GB"):
            if size < 1024:
                sizes.add(f"{size}{unit}")
                break
            size //= 1024
    return frozenset(sizes)
