"""Readings as a node of a test would give them: every number another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host.block_devices import FileSystem
from cri_shim.host.cgroups.counters import CgroupCounters, DeviceIo, HugePages
from cri_shim.host.cgroups.pressure import Pressure, Stalls
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.host.interface_counters import InterfaceCounters
from cri_shim.host.process_counters import ProcessCounters
from cri_shim.sandbox.cri_metrics.readings import ContainerReading, PodReading
from cri_shim.sandbox.store.model import ContainerStatus
from tests.unit.rpc.fakes import make_container, make_sandbox

SECOND = 1_000_000_000


def pressure(some_s: int, full_s: int) -> Pressure:
    return Pressure(Stalls(some_s * 1_000_000, 0, 0, 0), Stalls(full_s * 1_000_000, 0, 0, 0))


USAGE = CgroupStats(
    read_at_ns=100 * SECOND,
    cpu_usage_ns=7 * SECOND + 5,
    memory_usage_bytes=201,
    working_set_bytes=202,
    rss_bytes=203,
    page_faults=204,
    major_page_faults=205,
    swap_usage_bytes=206,
    pids_current=207,
    cpu_pressure=pressure(11, 12),
    memory_pressure=pressure(13, 14),
    io_pressure=pressure(15, 16),
)
COUNTERS = CgroupCounters(
    {
        "user_ns": 4 * SECOND,
        "system_ns": 3 * SECOND,
        "throttled_ns": 2 * SECOND,
        "nr_periods": 301,
        "nr_throttled": 302,
        "file": 303,
        "file_mapped": 304,
        "pgfault": 305,
        "pgmajfault": 306,
        "kernel": 307,
        "peak": 308,
        "failcnt": 309,
        "min": 310,
        "oom_kill": 311,
        "pids_max": 312,
    },
    {(8, 0): DeviceIo(401, 402, 403, 404)},
    (HugePages("2MB", 501, 502),),
)
RESOURCES = api.LinuxContainerResources(
    cpu_period=50_000,
    cpu_quota=20_000,
    cpu_shares=2,
    memory_limit_in_bytes=601,
    memory_swap_limit_in_bytes=602,
)


def container_reading(**changes: Any) -> ContainerReading:
    status = ContainerStatus(committed_at_ns=1, started_at_ns=90 * SECOND)
    return replace(
        ContainerReading(
            container=make_container(status=status, image_name="busybox:1"),
            usage=USAGE,
            counters=COUNTERS,
            processes=ProcessCounters(701, 702, 703),
            open_files_limit=1024,
            resources=RESOURCES,
            file_system=FileSystem("/dev/sda1", 801, 802, 803),
            layer_bytes=804,
            device_paths={(8, 0): "/dev/sda"},
        ),
        **changes,
    )


def pod_reading(*containers: ContainerReading) -> PodReading:
    eth0 = InterfaceCounters("eth0", *range(901, 909))
    return PodReading(make_sandbox(), 101 * SECOND, [eth0], containers)
