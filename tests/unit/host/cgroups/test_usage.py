from __future__ import annotations

from pathlib import Path

from cri_shim.host.cgroups.layout import Layout, detect_layout
from cri_shim.host.cgroups.pressure import Pressure, Stalls
from cri_shim.host.cgroups.usage import CgroupStats, UsageReader, oom_kills

NODES = Path(__file__).parents[3] / "data/cgroups"
SCOPE = "kubepods.slice/kubepods-besteffort.slice/cri-shim-ab.scope"


def read_stats(layout: Layout, relative_dir: str) -> CgroupStats:
    return UsageReader(layout).read(relative_dir)


def test_v2_usage_is_read_from_the_unified_files() -> None:
    stats = read_stats(detect_layout(NODES / "v2"), SCOPE)

    assert stats.cpu_usage_ns == 1_234_567_000
    assert stats.memory_usage_bytes == 73_400_320
    assert stats.working_set_bytes == 73_400_320 - 10_485_760
    assert stats.rss_bytes == 52_428_800
    assert (stats.page_faults, stats.major_page_faults) == (20_001, 17)
    assert stats.memory_limit_bytes == 134_217_728
    assert stats.memory_available_bytes == 134_217_728 - (73_400_320 - 10_485_760)
    assert stats.swap_usage_bytes == 4096
    assert stats.pids_current == 7
    assert stats.read_at_ns > 0


def test_v2_pressure_is_that_of_the_cgroup() -> None:
    stats = read_stats(detect_layout(NODES / "v2"), SCOPE)

    assert stats.cpu_pressure == Pressure(Stalls(1_234_567, 1.5, 0.75, 0.25), Stalls(0, 0, 0, 0))
    assert stats.memory_pressure == Pressure(Stalls(5000, 0, 0, 0.1), Stalls(4000, 0, 0, 0.05))
    assert stats.io_pressure == Pressure(
        Stalls(900_000, 12.0, 3.0, 1.0), Stalls(800_000, 11.0, 2.0, 0.5)
    )


def test_v1_and_hybrid_have_no_pressure() -> None:
    for node, cgroup in (("v1", "kubepods/pod1/ab"), ("hybrid", "cri-shim/ab")):
        stats = read_stats(detect_layout(NODES / node), cgroup)
        assert (stats.cpu_pressure, stats.memory_pressure, stats.io_pressure) == (None, None, None)


def test_cpu_time_alone_is_the_same() -> None:
    for node, cgroup in (("v1", "kubepods/pod1/ab"), ("hybrid", "cri-shim/ab"), ("v2", SCOPE)):
        layout = detect_layout(NODES / node)
        usage_ns = UsageReader(layout).cpu_usage_ns(cgroup)
        assert usage_ns is not None
        assert usage_ns == read_stats(layout, cgroup).cpu_usage_ns


def test_v1_usage_is_read_from_each_hierarchy() -> None:
    stats = read_stats(detect_layout(NODES / "v1"), "kubepods/pod1/ab")

    assert stats.cpu_usage_ns == 987_654_321
    assert stats.memory_usage_bytes == 20_971_520
    assert stats.rss_bytes == 2_097_152
    assert (stats.page_faults, stats.major_page_faults) == (555, 5)
    assert stats.swap_usage_bytes == 22_020_096 - 20_971_520
    assert stats.pids_current == 2


def test_working_set_is_never_negative() -> None:
    assert read_stats(detect_layout(NODES / "v1"), "kubepods/pod1/ab").working_set_bytes == 0


def test_largest_v1_limit_means_no_limit() -> None:
    stats = read_stats(detect_layout(NODES / "v1"), "kubepods/pod1/ab")

    assert stats.memory_limit_bytes is None
    assert stats.memory_available_bytes is None


def test_hybrid_takes_memory_from_v1_and_cpu_time_from_v2() -> None:
    stats = read_stats(detect_layout(NODES / "hybrid"), "cri-shim/ab")

    assert stats.cpu_usage_ns == 21_000
    assert stats.memory_limit_bytes == 33_554_432
    assert stats.memory_available_bytes == 33_554_432
    assert stats.swap_usage_bytes == 8192
    assert stats.pids_current is None


def test_what_is_gone_reads_as_unknown() -> None:
    for node in ("v1", "v2", "hybrid"):
        layout = detect_layout(NODES / node)
        stats = read_stats(layout, "no/such/cgroup")
        assert stats.cpu_usage_ns is None
        assert stats.working_set_bytes is None
        assert stats.pids_current is None
        assert oom_kills(layout, "no/such/cgroup") is None


def test_oom_kills_are_counted_on_both_versions() -> None:
    assert oom_kills(detect_layout(NODES / "v2"), SCOPE) == 2
    assert oom_kills(detect_layout(NODES / "v1"), "kubepods/pod1/ab") == 3


def test_nonsense_in_a_file_reads_as_unknown(tmp_path: Path) -> None:
    layout = detect_layout(NODES / "v2")
    tree = layout.hierarchies[0]
    broken = type(tree)(tree.version, tmp_path, tree.mount_root, tree.controllers)
    (tmp_path / "memory.current").write_bytes(b"\xff\x00 what")
    (tmp_path / "memory.stat").write_bytes(b"anon\nfile -3\nanon 5\n")
    (tmp_path / "cpu.stat").write_bytes(b"usage_usec\n")

    stats = read_stats(type(layout)(layout.mode, (broken,)), "")

    assert stats.memory_usage_bytes is None
    assert stats.cpu_usage_ns is None
    assert stats.rss_bytes == 5
