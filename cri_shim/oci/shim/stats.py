"""What a shim says that a container uses, in the terms of `oci/runtime`. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from cri_shim._pb.shim.v2 import task_pb2 as pb
from cri_shim.errors import UnsupportedError
from cri_shim.oci.runtime import (
    CpuTime,
    CpuUsage,
    MemoryAmount,
    MemoryUsage,
    PidsUsage,
    RuntimeStats,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_stats(said: pb.Any) -> RuntimeStats:
    """Read metrics of cgroup v1 or v2. Raises UnsupportedError for another form."""
    name = said.type_url.rpartition("/")[2]
    try:
        if name == "io.containerd.cgroups.v1.Metrics":
            return _read_v1(pb.CgroupV1.FromString(said.value))
        if name == "io.containerd.cgroups.v2.Metrics":
            return _read_v2(pb.CgroupV2.FromString(said.value))
    except DecodeError as error:
        raise UnsupportedError("a shim's metrics can't be read") from error
    raise UnsupportedError(f"a shim's metrics have the unknown form {name[:64]!r}")


def _read_v1(metrics: pb.CgroupV1) -> RuntimeStats:
    memory = metrics.memory
    return RuntimeStats(
        CpuUsage(CpuTime(metrics.cpu.usage.total)),
        MemoryUsage(
            cache=memory.cache,
            usage=MemoryAmount(memory.usage.usage, memory.usage.limit),
            # v1 counts memory and swap together.
            swap=MemoryAmount(max(memory.swap.usage - memory.usage.usage, 0), memory.swap.limit),
            raw=_named(
                {
                    "total_inactive_file": memory.total_inactive_file,
                    "total_rss": memory.total_rss,
                    "total_pgfault": memory.total_page_faults,
                    "total_pgmajfault": memory.total_major_page_faults,
                }
            ),
        ),
        PidsUsage(metrics.pids.current),
    )


def _read_v2(metrics: pb.CgroupV2) -> RuntimeStats:
    memory = metrics.memory
    return RuntimeStats(
        CpuUsage(CpuTime(metrics.cpu.usage_usec * 1000)),
        MemoryUsage(
            cache=memory.file,
            usage=MemoryAmount(memory.usage, memory.usage_limit),
            swap=MemoryAmount(memory.swap_usage, memory.swap_limit),
            raw=_named(
                {
                    "inactive_file": memory.inactive_file,
                    "anon": memory.anon,
                    "pgfault": memory.page_faults,
                    "pgmajfault": memory.major_page_faults,
                }
            ),
        ),
        PidsUsage(metrics.pids.current),
    )


def _named(values: Mapping[str, int]) -> dict[str, int]:
    return dict(values)
