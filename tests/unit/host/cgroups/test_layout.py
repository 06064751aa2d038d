from __future__ import annotations

from pathlib import Path

import pytest

from cri_shim.errors import ConfigError, CriShimError
from cri_shim.host.cgroups.layout import (
    CgroupDriver,
    CgroupMode,
    detect_layout,
    effective_driver,
    parse_proc_cgroup,
)

NODES = Path(__file__).parents[3] / "data/cgroups"


def test_v2_node_has_one_tree_with_the_controllers_its_root_offers() -> None:
    layout = detect_layout(NODES / "v2")

    assert layout.mode is CgroupMode.V2
    assert [str(tree.mount_point) for tree in layout.hierarchies] == [
        str(NODES / "v2/sys/fs/cgroup")
    ]
    assert {"cpu", "memory", "pids", "io"} <= layout.controllers
    assert layout.unified is layout.hierarchies[0]


def test_v1_node_has_a_tree_per_mount_and_knows_co_mounted_controllers() -> None:
    layout = detect_layout(NODES / "v1")

    assert layout.mode is CgroupMode.V1
    assert layout.unified is None
    assert layout.controllers == {"cpu", "cpuacct", "memory", "pids", "cpuset"}
    cpu = layout.of_controller("cpu")
    assert cpu is not None
    assert cpu is layout.of_controller("cpuacct")
    assert cpu.mount_point.name == "cpu,cpuacct"
    assert layout.of_controller("name=systemd") is not None
    assert layout.of_controller("hugetlb") is None


def test_hybrid_node_finds_each_controller_where_it_is() -> None:
    layout = detect_layout(NODES / "hybrid")

    assert layout.mode is CgroupMode.HYBRID
    memory, hugetlb = layout.of_controller("memory"), layout.of_controller("hugetlb")
    assert memory is not None
    assert memory.version == 1
    assert hugetlb is layout.unified


def test_hierarchies_mounted_elsewhere_again_do_not_count(tmp_path: Path) -> None:
    mountinfo = tmp_path / "proc/self/mountinfo"
    mountinfo.parent.mkdir(parents=True)
    mountinfo.write_text(
        "77 28 0:26 / /srv/jail/cgroup rw,relatime - cgroup2 cgroup2 rw\n", encoding="ascii"
    )

    with pytest.raises(CriShimError, match="no cgroup hierarchy is mounted"):
        detect_layout(tmp_path)


def test_runtimes_of_a_hybrid_node_limit_by_its_older_part_alone() -> None:
    hybrid = detect_layout(NODES / "hybrid")
    assert "hugetlb" in hybrid.controllers
    assert "hugetlb" not in hybrid.limiting_controllers
    assert "memory" in hybrid.limiting_controllers
    for node in ("v1", "v2"):
        assert "memory" in detect_layout(NODES / node).limiting_controllers


@pytest.mark.parametrize(("node", "expected"), [("v2", "systemd"), ("hybrid", "cgroupfs")])
def test_auto_follows_what_runs_the_node(node: str, expected: str) -> None:
    assert effective_driver("auto", detect_layout(NODES / node), NODES / node) == expected


def test_auto_is_cgroupfs_when_systemd_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)

    driver = effective_driver("auto", detect_layout(NODES / "v2"), tmp_path)

    assert driver is CgroupDriver.CGROUPFS


def test_configured_driver_wins_and_nonsense_is_refused(tmp_path: Path) -> None:
    layout = detect_layout(NODES / "v2")

    assert effective_driver("cgroupfs", layout, NODES / "v2") is CgroupDriver.CGROUPFS
    assert effective_driver("systemd", layout, NODES / "v2") is CgroupDriver.SYSTEMD
    with pytest.raises(ConfigError, match="systemd is not the init system of this node"):
        effective_driver("systemd", layout, tmp_path)
    with pytest.raises(ConfigError, match="'lxc' is unknown"):
        effective_driver("lxc", layout, tmp_path)


def test_lines_of_proc_cgroup_are_told_apart_by_controller() -> None:
    text = "5:cpu,cpuacct:/a:b\n1:name=systemd:/s\n0::/u\n"

    assert parse_proc_cgroup(text) == {
        "cpu": "/a:b",
        "cpuacct": "/a:b",
        "name=systemd": "/s",
        "": "/u",
    }
