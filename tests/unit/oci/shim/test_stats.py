"""Metrics of both versions of cgroups, as shims tell them."""

from __future__ import annotations

import pytest

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.errors import UnsupportedError
from cri_shim.oci.shim.stats import read_stats


def test_metrics_of_version_1() -> None:
    metrics = pb.CgroupV1(
        pids=pb.PidsUsage(current=3),
        cpu=pb.CpuUsageV1(usage=pb.CpuTimesV1(total=77)),
        memory=pb.MemoryUsageV1(
            cache=5,
            total_rss=6,
            total_inactive_file=7,
            total_page_faults=8,
            total_major_page_faults=9,
            usage=pb.MemoryAmountV1(usage=100, limit=200),
            swap=pb.MemoryAmountV1(usage=130, limit=300),
        ),
    )
    stats = read_stats(
        pb.Any(type_url="io.containerd.cgroups.v1.Metrics", value=metrics.SerializeToString())
    )
    assert (stats.pids.current, stats.cpu.usage.total) == (3, 77)
    assert (stats.memory.usage.usage, stats.memory.usage.limit) == (100, 200)
    assert (stats.memory.cache, stats.memory.swap.usage) == (5, 30)
    assert stats.memory.raw == {
        "total_inactive_file": 7,
        "total_rss": 6,
        "total_pgfault": 8,
        "total_pgmajfault": 9,
    }


def test_metrics_of_version_2() -> None:
    metrics = pb.CgroupV2(
        pids=pb.PidsUsage(current=3),
        cpu=pb.CpuUsageV2(usage_usec=77),
        memory=pb.MemoryUsageV2(
            anon=1,
            file=2,
            inactive_file=3,
            page_faults=4,
            major_page_faults=5,
            usage=6,
            usage_limit=7,
        ),
    )
    any_ = pb.Any(
        type_url="types.googleapis.com/io.containerd.cgroups.v2.Metrics",
        value=metrics.SerializeToString(),
    )
    stats = read_stats(any_)
    assert (stats.pids.current, stats.cpu.usage.total) == (3, 77_000)
    assert (stats.memory.usage.usage, stats.memory.usage.limit) == (6, 7)
    assert stats.memory.raw == {"inactive_file": 3, "anon": 1, "pgfault": 4, "pgmajfault": 5}


def test_other_forms_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="windows"):
        read_stats(pb.Any(type_url="windows.Metrics"))
    with pytest.raises(UnsupportedError, match="can't be read"):
        read_stats(pb.Any(type_url="io.containerd.cgroups.v2.Metrics", value=b"\xff"))
