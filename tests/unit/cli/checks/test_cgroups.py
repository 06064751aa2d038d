from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.cli.checks import cgroups
from cri_shim.cli.checks.row import Level
from cri_shim.config.model import CgroupDriver
from tests.unit.cli.checks.trees import V1, mountinfo, plant

if TYPE_CHECKING:
    from pathlib import Path


def test_a_node_without_cgroups_fails(tmp_path: Path) -> None:
    node = plant(tmp_path, {"/proc/self/mountinfo": mountinfo(("/", "ext4", "rw"))})
    layout = cgroups.read_layout(node)
    assert cgroups.cgroups(layout).level is Level.FAILED
    assert cgroups.cgroup_driver(node, layout, CgroupDriver.AUTO).level is Level.FAILED


def test_a_v2_node_needs_no_devices_controller(tmp_path: Path) -> None:
    node = plant(
        tmp_path,
        {
            "/proc/self/mountinfo": mountinfo(("/sys/fs/cgroup", "cgroup2", "rw")),
            "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids",
        },
    )
    row = cgroups.cgroups(cgroups.read_layout(node))
    assert row.level is Level.OK
    assert row.detail == "v2, controllers cpu, cpuset, hugetlb, io, memory, pids"


def test_a_missing_memory_controller_is_a_warning_that_says_what_is_lost(tmp_path: Path) -> None:
    mounts = [mount for mount in V1 if "memory" not in mount[0]]
    node = plant(tmp_path, {"/proc/self/mountinfo": mountinfo(*mounts)})
    row = cgroups.cgroups(cgroups.read_layout(node))
    assert row.level is Level.WARNING
    assert "no memory limits and OOM reports" in row.detail


def test_v1_without_devices_fails(tmp_path: Path) -> None:
    mounts = [mount for mount in V1 if "devices" not in mount[0]]
    node = plant(tmp_path, {"/proc/self/mountinfo": mountinfo(*mounts)})
    assert cgroups.cgroups(cgroups.read_layout(node)).level is Level.FAILED


def test_systemd_as_driver_needs_systemd(tmp_path: Path) -> None:
    node = plant(tmp_path, {"/proc/self/mountinfo": mountinfo(*V1)})
    layout = cgroups.read_layout(node)
    row = cgroups.cgroup_driver(node, layout, CgroupDriver.SYSTEMD)
    assert row.level is Level.FAILED
    assert "systemd is not the init system of this node" in row.detail
    assert cgroups.cgroup_driver(node, layout, CgroupDriver.AUTO).detail.startswith("cgroupfs")
