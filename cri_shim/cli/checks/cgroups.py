"""Checks control groups: mounted hierarchies, controllers, and the cgroup driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.cli.checks.row import Node, Row, failed, ok, warning
from cri_shim.errors import CriShimError
from cri_shim.host.cgroups.layout import CgroupMode, Layout, detect_layout, effective_driver

if TYPE_CHECKING:
    from cri_shim.config.model import CgroupDriver

# What does not work without a controller. v2 has no controllers `devices` and `freezer`, since it needs none.
LIMITED_BY = {
    "cpu": "CPU requests and limits",
    "cpuset": "pinning to cores",
    "memory": "memory limits and OOM reports",
    "pids": "pid limits",
}


def read_layout(node: Node) -> Layout | None:
    """The cgroup hierarchies of the node, or None."""
    try:
        return detect_layout(node.root)
    except (CriShimError, OSError):
        return None


def cgroups(layout: Layout | None) -> Row:
    """Whether cgroups are mounted, with the controllers that limits need."""
    if layout is None:
        return failed(
            "cgroups",
            "no cgroup hierarchy is mounted below /sys/fs/cgroup",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )
    found = f"{layout.mode}, controllers {', '.join(sorted(layout.controllers)) or 'none'}"
    if layout.mode is not CgroupMode.V2 and "devices" not in layout.controllers:
        return failed(
            "cgroups",
            f"{found}: OCI runtimes cannot start containers on v1 without devices",
            "mount the devices controller below /sys/fs/cgroup, or use cgroups v2",
        )
    lost = [use for name, use in LIMITED_BY.items() if name not in layout.controllers]
    if lost:
        return warning(
            "cgroups",
            f"{found}: no {', no '.join(lost)}",
            "mount the missing controllers; on some boards the kernel command line needs cgroup_enable=memory",
        )
    return ok("cgroups", found)


def cgroup_driver(node: Node, layout: Layout | None, configured: CgroupDriver) -> Row:
    """Whether the configured driver works on this node."""
    name = "cgroup driver"
    if layout is None:
        return failed(name, "no cgroup hierarchy is mounted", "see the row cgroups")
    try:
        driver = effective_driver(str(configured), layout, node.root)
    except CriShimError as error:
        return failed(name, str(error), "cri-shim serve --set cgroup_driver=cgroupfs")
    chosen = " (chosen by auto)" if str(configured) == "auto" else ""
    return ok(name, f"{driver}{chosen}; the kubelet must use the same")
