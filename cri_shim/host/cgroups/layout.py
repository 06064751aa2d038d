"""Detects the cgroup hierarchies of this node and their controllers.

Rules:
- Only mounted hierarchies count (/proc/self/mountinfo). A v1 node mounts controllers separately, a v2 node mounts one
  tree, and a hybrid node mounts both, with most controllers in v1.
- `root` is a directory that takes the place of /, such as the recorded tree of another machine.
- Cgroup paths are relative to each hierarchy's mount point and have no leading slash.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cri_shim.errors import ConfigError, CriShimError
from cri_shim.quoting import quoted

CGROUP_DIR = "/sys/fs/cgroup"
_OCTAL_ESCAPE = re.compile(rb"\\([0-7]{3})")
_V1_CONTROLLERS = frozenset(
    {
        *("blkio", "cpu", "cpuacct", "cpuset", "devices", "files", "freezer", "hugetlb", "memory"),
        *("misc", "net_cls", "net_prio", "perf_event", "pids", "rdma"),
    }
)


class CgroupMode(StrEnum):
    """The cgroup versions that are mounted."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


class CgroupDriver(StrEnum):
    """Whether the OCI runtime creates the containers' cgroups itself, or asks systemd to."""

    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy."""

    version: int
    mount_point: Path
    """The mount point, below `root`."""
    mount_root: str
    """The cgroup that is mounted there: "/", or another one if this process sees only a part of the hierarchy."""
    controllers: frozenset[str]
    """Its controllers. A named v1 hierarchy has its name here, such as `name=systemd`."""

    def directory(self, relative_dir: str) -> Path:
        """The directory of a cgroup in this hierarchy."""
        return self.mount_point / relative_dir

    def path(self, relative_dir: str) -> str:
        """The directory as a string, for code that visits every hierarchy: a Path costs ten times as much."""
        return f"{self.mount_point}/{relative_dir}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The cgroup hierarchies of the node."""

    mode: CgroupMode
    hierarchies: tuple[Hierarchy, ...]
    """The v2 hierarchy comes first, if there is one: its cgroup.kill ends a whole subtree at once."""

    @property
    def controllers(self) -> frozenset[str]:
        """All controllers of the node, without named hierarchies."""
        return frozenset(
            name for tree in self.hierarchies for name in tree.controllers if "=" not in name
        )

    @property
    def limiting_controllers(self) -> frozenset[str]:
        """The controllers that OCI runtimes use for limits: on a hybrid node those of v1 only."""
        version = 2 if self.mode is CgroupMode.V2 else 1
        return frozenset(
            name
            for tree in self.hierarchies
            if tree.version == version
            for name in tree.controllers
        )

    @property
    def unified(self) -> Hierarchy | None:
        """The v2 hierarchy, or None."""
        first = self.hierarchies[0]
        return first if first.version == 2 else None

    def of_controller(self, controller: str) -> Hierarchy | None:
        """The hierarchy with `controller`, or None if no hierarchy has it."""
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers:
                return hierarchy
        return None


def detect_layout(root: Path = Path("/")) -> Layout:
    """Detect the mounted hierarchies. Synchronous: reads a few small files.

    Raises CriShimError if no cgroup hierarchy is mounted at or below /sys/fs/cgroup.
    """
    found: dict[str, Hierarchy] = {}
    for line in (root / "proc/self/mountinfo").read_bytes().splitlines():
        mount = _parse_mount(line)
        # A hierarchy may be mounted several times. Runtimes use the mount below /sys/fs/cgroup.
        if mount is not None and mount.device not in found and _is_standard_place(mount.point):
            found[mount.device] = _hierarchy(mount, root)
    trees = sorted(found.values(), key=lambda tree: (-tree.version, str(tree.mount_point)))
    if not trees:
        raise CriShimError(
            f"no cgroup hierarchy is mounted at {CGROUP_DIR}: mount cgroup2 there, or v1 controllers below it"
        )
    return Layout(_mode({tree.version for tree in trees}), tuple(trees))


def effective_driver(configured: str, layout: Layout, root: Path = Path("/")) -> CgroupDriver:
    """The driver that the setting `cgroup_driver` (auto, cgroupfs, systemd) selects on this node.

    `auto` is systemd if systemd is the init system, has a reachable bus, and manages a hierarchy. Kubelet must use the
    same driver, and gets it from RuntimeConfig. Synchronous: a few stat calls.

    Raises ConfigError for another value, and for systemd on a node without systemd.
    """
    run = root / "run"
    booted = (run / "systemd/system").is_dir()
    reachable = (run / "systemd/private").exists() or (run / "dbus/system_bus_socket").exists()
    managed = layout.mode is CgroupMode.V2 or layout.of_controller("name=systemd") is not None
    if configured == "auto":
        managing = booted and reachable and managed
        return CgroupDriver.SYSTEMD if managing else CgroupDriver.CGROUPFS
    try:
        driver = CgroupDriver(configured)
    except ValueError:
        raise ConfigError(
            f"cgroup_driver: {quoted(configured)} is unknown; allowed are auto, cgroupfs, systemd"
        ) from None
    if driver is CgroupDriver.SYSTEMD and not booted:
        raise ConfigError(
            "cgroup_driver: systemd is not the init system of this node (no /run/systemd/system): use cgroupfs or auto"
        )
    return driver


def parse_proc_cgroup(text: str) -> dict[str, str]:
    """The paths in a /proc/PID/cgroup by controller; the v2 path under "". Pure.

    Paths are as the kernel writes them, absolute from the hierarchy's root.
    """
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _mode(versions: set[int]) -> CgroupMode:
    if versions == {1, 2}:
        return CgroupMode.HYBRID
    return CgroupMode.V2 if 2 in versions else CgroupMode.V1


@dataclass(frozen=True, slots=True)
class _Mount:
    device: str
    root: str
    point: str
    version: int
    super_options: tuple[str, ...]


def _parse_mount(line: bytes) -> _Mount | None:
    fields = line.split(b" ")
    separator = fields.index(b"-", 6)  # any number of optional fields precede it (proc(5))
    version = {b"cgroup": 1, b"cgroup2": 2}.get(fields[separator + 1])
    if version is None:
        return None
    return _Mount(
        device=fields[2].decode("ascii"),
        root=_unescape(fields[3]),
        point=_unescape(fields[4]),
        version=version,
        super_options=tuple(os.fsdecode(fields[separator + 3]).split(",")),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def _is_standard_place(mount_point: str) -> bool:
    return mount_point == CGROUP_DIR or mount_point.startswith(CGROUP_DIR + "/")


def _hierarchy(mount: _Mount, root: Path) -> Hierarchy:
    mount_point = root / mount.point.lstrip("/")
    if mount.version == 2:
        controllers = (mount_point / "cgroup.controllers").read_text("ascii").split()
    else:
        controllers = [
            option
            for option in mount.super_options
            if option in _V1_CONTROLLERS or option.startswith("name=")
        ]
    return Hierarchy(mount.version, mount_point, mount.root, frozenset(controllers))
