from __future__ import annotations

from pathlib import Path

from cri_shim.host.cgroups.layout import detect_layout
from cri_shim.host.cgroups.usage import oom_kills, read_stats

NODES = Path(__file__).parents[3] / "data/cgroups"
SCOPE = "kubepods.slice/kubepods-besteffort.slice/cri-shim-ab.scope"


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
