"""Which cgroup hierarchies this node has, and which controller lives in which.

Rules:
- What counts is what is mounted (proc(5), mountinfo), not what the kernel could do: a v1 node mounts each
  controller by itself, a v2 node one tree, a hybrid node both, with most controllers in the v1 part.
- `root` stands for `/`: a recorded tree in a directory answers as the machine would that it was recorded on.
- Paths of cgroups are relative to each hierarchy's mount point and carry no leading slash.
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
    """What is mounted."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


class CgroupDriver(StrEnum):
    """Who makes the cgroups of containers: the runtime itself, or systemd on its behalf."""

    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted tree of cgroups."""

    version: int
    mount_point: Path
    """Where it is found, `root` included."""
    mount_root: str
    """The cgroup that is mounted there, "/" unless this process sees only a part of the tree."""
    controllers: frozenset[str]
    """What it controls; a named v1 hierarchy appears as `name=systemd`, say."""

    def directory(self, relative_dir: str) -> Path:
        """The directory of a cgroup in this hierarchy."""
        return self.mount_point / relative_dir

    def path(self, relative_dir: str) -> str:
        """The same as text, for who looks at every hierarchy of a cgroup: at a tenth of the cost."""
        return f"{self.mount_point}/{relative_dir}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The node's hierarchies."""

    mode: CgroupMode
    hierarchies: tuple[Hierarchy, ...]
    """The v2 tree first, if there is one: it can kill and count a whole subtree at once."""

    @property
    def controllers(self) -> frozenset[str]:
        """Every controller of the node, without named hierarchies."""
        return frozenset(
            name for tree in self.hierarchies for name in tree.controllers if "=" not in name
        )

    @property
    def limiting_controllers(self) -> frozenset[str]:
        """Those that OCI runtimes can set limits with: on a hybrid node the v1 part's alone."""
        version = 2 if self.mode is CgroupMode.V2 else 1
        return frozenset(
            name
            for tree in self.hierarchies
            if tree.version == version
            for name in tree.controllers
        )

    @property
    def unified(self) -> Hierarchy | None:
        """The v2 tree."""
        first = self.hierarchies[0]
        return first if first.version == 2 else None

    def of_controller(self, controller: str) -> Hierarchy | None:
        """The hierarchy that `controller` lives in; None when the node lacks it."""
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers:
                return hierarchy
        return None


def detect_layout(root: Path = Path("/")) -> Layout:
    """Read what is mounted. Synchronous: three small files.

    Raises CriShimError when no cgroup hierarchy is mounted below /sys/fs/cgroup.
    """
    found: dict[str, Hierarchy] = {}
    for line in (root / "proc/self/mountinfo").read_bytes().splitlines():
        mount = _parse_mount(line)
        # The same hierarchy may be mounted again elsewhere; below /sys/fs/cgroup is where runtimes look.
        if mount is not None and mount.device not in found and _is_standard_place(mount.point):
            found[mount.device] = _hierarchy(mount, root)
    trees = sorted(found.values(), key=lambda tree: (-tree.version, str(tree.mount_point)))
    if not trees:
        raise CriShimError(
            f"no cgroup hierarchy is mounted at {CGROUP_DIR}: mount cgroup2 there, or the v1 controllers below it"
        )
    return Layout(_mode({tree.version for tree in trees}), tuple(trees))


def effective_driver(configured: str, layout: Layout, root: Path = Path("/")) -> CgroupDriver:
    """What `cgroup_driver: auto | cgroupfs | systemd` comes to on this node.

    `auto` is systemd where systemd runs the node, can be asked, and manages a hierarchy; kubelet must use the same
    driver, and learns it from us. Synchronous: a few stats.

    Raises ConfigError for another word, and for systemd on a node without it.
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
            f"cgroup_driver: {quoted(configured)} is not known, allowed are auto, cgroupfs, systemd"
        ) from None
    if driver is CgroupDriver.SYSTEMD and not booted:
        raise ConfigError(
            "cgroup_driver: systemd does not run this node (no /run/systemd/system), use cgroupfs or auto"
        )
    return driver


def parse_proc_cgroup(text: str) -> dict[str, str]:
    """The lines of a /proc/PID/cgroup by controller, each name by itself; the v2 line under the empty name.

    Pure. Values are as the kernel writes them, absolute from the hierarchy's own root.
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
    separator = fields.index(b"-", 6)  # optional fields stand before it, as many as there are
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
