from __future__ import annotations

from pathlib import Path

import pytest

from cri_shim.cli.checks import resources
from cri_shim.cli.checks.row import Level
from tests.unit.cli.checks.trees import plant

GIB = resources.GIB


@pytest.mark.parametrize(
    ("free", "inodes", "level"),
    [
        (50 * GIB, 5_000_000, Level.OK),
        (9 * GIB, 5_000_000, Level.WARNING),
        (50 * GIB, 500_000, Level.WARNING),
        (GIB // 2, 5_000_000, Level.FAILED),
        (50 * GIB, 5000, Level.FAILED),
    ],
)
def test_a_full_disk_is_told_by_bytes_and_by_inodes(free: int, inodes: int, level: Level) -> None:
    row = resources.rate_disk(
        Path("/x"), free=free, total=100 * GIB, free_inodes=inodes, total_inodes=10_000_000
    )
    assert row.level is level


def test_a_file_system_that_counts_no_inodes_is_judged_by_bytes() -> None:
    row = resources.rate_disk(
        Path("/x"), free=50 * GIB, total=100 * GIB, free_inodes=0, total_inodes=0
    )
    assert (row.level, row.detail) == (Level.OK, "/x: 50.0 of 100.0 GiB free")


def test_the_disk_of_a_root_that_is_not_there_yet_is_its_parents(tmp_path: Path) -> None:
    assert str(tmp_path) in resources.disk_space(tmp_path / "a" / "b").detail


def test_a_file_in_the_way_of_a_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    row = resources.directories(tmp_path / "root", tmp_path / "file" / "state")
    assert row.level is Level.FAILED
    assert row.detail == f"state: {tmp_path}/file is not a directory"
    assert resources.directories(tmp_path / "root", tmp_path / "state").level is Level.OK


GOOD = {
    "/proc/sys/net/ipv4/ip_forward": "1\n",
    "/proc/sys/net/bridge/bridge-nf-call-iptables": "1\n",
    "/proc/sys/fs/inotify/max_user_instances": "8192\n",
    "/proc/sys/fs/inotify/max_user_watches": "524288\n",
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/kernel/panic": "10",
    "/proc/sys/kernel/panic_on_oops": "1",
}


def test_a_prepared_node_has_nothing_to_change(tmp_path: Path) -> None:
    rows = resources.sysctls(plant(tmp_path, GOOD))
    assert {row.level for row in rows} == {Level.OK}


def test_a_sysctl_that_is_off_comes_with_its_cost_and_command(tmp_path: Path) -> None:
    node = plant(tmp_path, {**GOOD, "/proc/sys/net/ipv4/ip_forward": "0\n"})
    row = resources.sysctls(node)[0]
    assert (row.name, row.level) == ("sysctl net.ipv4.ip_forward", Level.WARNING)
    assert row.detail == "is 0, less than 1: pods reach neither other nodes nor the internet"
    assert row.remedy.startswith("sysctl -w net.ipv4.ip_forward=1")


def test_a_sysctl_that_a_module_brings_names_the_module(tmp_path: Path) -> None:
    files = dict(GOOD)
    del files["/proc/sys/net/bridge/bridge-nf-call-iptables"]
    row = resources.sysctls(plant(tmp_path, files))[1]
    assert row.level is Level.WARNING
    assert row.remedy.startswith("modprobe br_netfilter && sysctl -w")


def test_what_the_kubelet_sets_itself_is_no_warning(tmp_path: Path) -> None:
    row = resources.sysctls(plant(tmp_path, {**GOOD, "/proc/sys/kernel/panic": "0"}))[-1]
    assert (row.level, "kernel.panic=10" in row.detail) == (Level.OK, True)
