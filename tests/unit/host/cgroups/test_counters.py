"""Further counters of cgroups, on each kind of node."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri_shim.host.cgroups.counters import (
    CgroupCounters,
    CounterReader,
    DeviceIo,
    HugePages,
    huge_page_sizes,
)
from cri_shim.host.cgroups.layout import Layout, detect_layout

NODES = Path(__file__).parents[3] / "data/cgroups"
SCOPE = "kubepods.slice/kubepods-besteffort.slice/cri-shim-ab.scope"


def read(node: str, cgroup: str) -> CgroupCounters:
    root = NODES / node
    return CounterReader(detect_layout(root), list(huge_page_sizes(root))).read(cgroup)


def moved(node: str, directory: Path, controllers: set[str]) -> Layout:
    """A layout whose first hierarchy is `directory`, with these controllers."""
    layout = detect_layout(NODES / node)
    tree = layout.hierarchies[0]
    changed = type(tree)(tree.version, directory, tree.mount_root, frozenset(controllers))
    return Layout(layout.mode, (changed,))


def test_v2_counters_are_read_from_the_unified_files() -> None:
    counters = read("v2", SCOPE)
    assert counters.numbers == {
        "user_ns": 1_000_000_000,
        "system_ns": 234_567_000,
        "throttled_ns": 4_500_000,
        "nr_periods": 12,
        "nr_throttled": 3,
        "file": 16_777_216,
        "pgfault": 20_001,
        "pgmajfault": 17,
        "kernel": 4_194_304,
        "peak": 79_000_000,
        "min": 1_048_576,
        "oom_kill": 2,
        "pids_max": 500,
    }
    assert counters.devices == {
        (8, 0): DeviceIo(4096, 8192, 1, 2),
        (253, 1): DeviceIo(0, 512, 0, 1),
    }
    assert counters.huge_pages == (HugePages("1GB", 0, 0), HugePages("2MB", 4_194_304, 0))


def test_v1_counters_are_read_from_each_hierarchy() -> None:
    counters = read("v1", "kubepods/pod1/ab")
    assert counters.numbers == {
        "user_ns": 700_000_000,
        "system_ns": 300_000_000,
        "throttled_ns": 2_500_000_000,
        "nr_periods": 40,
        "nr_throttled": 4,
        "file": 31_457_280,
        "file_mapped": 12_288,
        "pgfault": 500,
        "pgmajfault": 4,
        "kernel": 65_536,
        "peak": 40_000_000,
        "failcnt": 6,
        "min": 9_223_372_036_854_771_712,
        "oom_kill": 3,
    }
    assert (counters.devices, counters.huge_pages) == ({}, ())


def test_hybrid_takes_throttling_from_v2_where_v1_has_no_cpu() -> None:
    assert read("hybrid", "cri-shim/ab").numbers["user_ns"] >= 0


@pytest.mark.parametrize("recursive", ["", "_recursive"])
def test_v1_disks_are_those_of_the_throttling_files(tmp_path: Path, recursive: str) -> None:
    (tmp_path / f"blkio.throttle.io_service_bytes{recursive}").write_text(
        "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:0 Total 12288\n7:1 Read 5\nTotal 12293\n"
    )
    (tmp_path / f"blkio.throttle.io_serviced{recursive}").write_text("8:0 Read 1\n8:0 Write 2\n")
    counters = CounterReader(moved("v1", tmp_path, {"blkio"}), ()).read("")
    assert counters.devices == {(8, 0): DeviceIo(4096, 8192, 1, 2), (7, 1): DeviceIo(5, 0, 0, 0)}


def test_v1_huge_pages_remember_the_most(tmp_path: Path) -> None:
    (tmp_path / "hugetlb.2MB.usage_in_bytes").write_text("2097152\n")
    (tmp_path / "hugetlb.2MB.max_usage_in_bytes").write_text("4194304\n")
    counters = CounterReader(moved("v1", tmp_path, {"hugetlb"}), ["2MB", "1GB"]).read("")
    assert counters.huge_pages == (HugePages("2MB", 2_097_152, 4_194_304),)


def test_kernel_memory_of_an_older_v2_kernel_is_a_sum(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("kernel_stack 1\npagetables 2\nslab 4\nanon 9\n")
    assert CounterReader(moved("v2", tmp_path, {"memory"}), ()).read("").numbers["kernel"] == 7


def test_what_is_gone_has_no_counters() -> None:
    for node in ("v1", "v2", "hybrid"):
        assert read(node, "no/such/cgroup") == CgroupCounters()


def test_page_sizes_are_named_as_the_controllers_files(tmp_path: Path) -> None:
    pages = tmp_path / "sys/kernel/mm/hugepages"
    for name in ("hugepages-64kB", "hugepages-2048kB", "hugepages-16777216kB", "other"):
        (pages / name).mkdir(parents=True)
    assert set(huge_page_sizes(tmp_path)) == {"64KB", "2MB", "16GB"}
    assert list(huge_page_sizes(tmp_path / "nowhere")) == []
