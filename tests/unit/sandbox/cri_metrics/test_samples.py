"""The samples of every metric, and of what a node does not count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host.block_devices import FileSystem
from cri_shim.host.cgroups.counters import CgroupCounters
from cri_shim.host.cgroups.pressure import Pressure, Stalls
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.sandbox.cri_metrics.families import CONTAINER_FAMILIES, POD_FAMILIES
from tests.unit.sandbox.cri_metrics.readings import container_reading, pod_reading

if TYPE_CHECKING:
    from cri_shim.sandbox.cri_metrics.readings import ContainerReading

EXPECTED: dict[str, dict[tuple[str, ...], int]] = {
    "blkio_device_usage_total": {
        ("/dev/sda", "8", "0", "read"): 401,
        ("/dev/sda", "8", "0", "write"): 402,
    },
    "cpu_cfs_periods_total": {(): 301},
    "cpu_cfs_throttled_periods_total": {(): 302},
    "cpu_cfs_throttled_seconds_total": {(): 2},
    "cpu_system_seconds_total": {(): 3},
    "cpu_usage_seconds_total": {("total",): 7},
    "cpu_user_seconds_total": {(): 4},
    "file_descriptors": {(): 702},
    "fs_inodes_free": {("/dev/sda1",): 803},
    "fs_inodes_total": {("/dev/sda1",): 802},
    "fs_limit_bytes": {("/dev/sda1",): 801},
    "fs_reads_bytes_total": {("/dev/sda",): 401},
    "fs_reads_total": {("/dev/sda",): 403},
    "fs_usage_bytes": {("/dev/sda1",): 804},
    "fs_writes_bytes_total": {("/dev/sda",): 402},
    "fs_writes_total": {("/dev/sda",): 404},
    "hugetlb_max_usage_bytes": {("2MB",): 502},
    "hugetlb_usage_bytes": {("2MB",): 501},
    "last_seen": {(): 100},
    "memory_cache": {(): 303},
    "memory_failcnt": {(): 309},
    "memory_failures_total": {
        ("pgfault", "container"): 305,
        ("pgfault", "hierarchy"): 204,
        ("pgmajfault", "container"): 306,
        ("pgmajfault", "hierarchy"): 205,
    },
    "memory_kernel_usage": {(): 307},
    "memory_mapped_file": {(): 304},
    "memory_max_usage_bytes": {(): 308},
    "memory_rss": {(): 203},
    "memory_swap": {(): 206},
    "memory_usage_bytes": {(): 201},
    "memory_working_set_bytes": {(): 202},
    "oom_events_total": {(): 311},
    "pressure_cpu_stalled_seconds_total": {(): 12},
    "pressure_cpu_waiting_seconds_total": {(): 11},
    "pressure_io_stalled_seconds_total": {(): 16},
    "pressure_io_waiting_seconds_total": {(): 15},
    "pressure_memory_stalled_seconds_total": {(): 14},
    "pressure_memory_waiting_seconds_total": {(): 13},
    "processes": {(): 701},
    "sockets": {(): 703},
    "spec_cpu_period": {(): 50_000},
    "spec_cpu_quota": {(): 20_000},
    "spec_cpu_shares": {(): 2},
    "spec_memory_limit_bytes": {(): 601},
    "spec_memory_reservation_limit_bytes": {(): 310},
    "spec_memory_swap_limit_bytes": {(): 602},
    "start_time_seconds": {(): 90},
    "threads": {(): 207},
    "threads_max": {(): 312},
    "ulimits_soft": {("max_open_files",): 1024},
}
OF_PODS = {
    "receive_bytes_total": 901,
    "receive_packets_total": 902,
    "receive_errors_total": 903,
    "receive_packets_dropped_total": 904,
    "transmit_bytes_total": 905,
    "transmit_packets_total": 906,
    "transmit_errors_total": 907,
    "transmit_packets_dropped_total": 908,
}


def samples(reading: ContainerReading) -> dict[str, dict[tuple[str, ...], int]]:
    return {
        family.name.removeprefix("container_"): {
            sample.labels: sample.value for sample in family.samples(reading)
        }
        for family in CONTAINER_FAMILIES
    }


def test_every_metric_of_a_container_has_its_samples() -> None:
    assert samples(container_reading()) == EXPECTED


def test_every_metric_of_a_pod_has_a_sample_per_interface() -> None:
    found = {
        family.name.removeprefix("container_network_"): list(family.samples(pod_reading()))
        for family in POD_FAMILIES
    }
    assert found == {name: [(number, ("eth0",))] for name, number in OF_PODS.items()}


def test_what_the_node_does_not_count_has_no_sample() -> None:
    bare = container_reading(
        usage=CgroupStats(read_at_ns=100),
        counters=CgroupCounters(),
        processes=None,
        open_files_limit=None,
        resources=api.LinuxContainerResources(),
        layer_bytes=None,
    )
    found = samples(bare)
    assert {name for name, each in found.items() if each} == {
        *("fs_inodes_free", "fs_inodes_total", "fs_limit_bytes", "last_seen"),
        *("memory_failcnt", "memory_swap", "spec_cpu_period"),
        *("spec_cpu_shares", "spec_memory_limit_bytes", "spec_memory_swap_limit_bytes"),
        *("start_time_seconds", "threads_max"),
    }
    assert (found["spec_cpu_period"], found["spec_cpu_shares"]) == ({(): 100_000}, {(): 1024})
    assert found["memory_failcnt"] == found["memory_swap"] == {(): 0}


def test_pressure_without_the_line_full_has_one_sample() -> None:
    usage = CgroupStats(read_at_ns=1, cpu_pressure=Pressure(some=Stalls(5_000_000, 0, 0, 0)))
    found = samples(container_reading(usage=usage))
    assert found["pressure_cpu_waiting_seconds_total"] == {(): 5}
    assert found["pressure_cpu_stalled_seconds_total"] == {}


@pytest.mark.parametrize("unlimited", [-1, 0, 1 << 62, (1 << 63) - 4096])
def test_no_limit_is_0(unlimited: int) -> None:
    resources = api.LinuxContainerResources(memory_limit_in_bytes=unlimited, cpu_quota=-1)
    found = samples(
        container_reading(
            resources=resources,
            counters=CgroupCounters({"min": max(unlimited, 0)}),
            file_system=FileSystem("", 0, 0, 0),
        )
    )
    assert found["spec_memory_limit_bytes"] == {(): 0}
    assert found["spec_memory_reservation_limit_bytes"] == {(): 0}
    assert found["spec_cpu_quota"] == {}
