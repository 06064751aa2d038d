"""Names the groups of metrics of which `stats.metrics` chooses."""

from __future__ import annotations

from enum import StrEnum


class MetricGroup(StrEnum):
    """Metrics of ListPodSandboxMetrics that belong together."""

    CPU = "cpu"
    DISK = "disk"
    DISK_IO = "disk_io"
    HUGETLB = "hugetlb"
    MEMORY = "memory"
    NETWORK = "network"
    OOM = "oom"
    PRESSURE = "pressure"
    PROCESS = "process"
    SPEC = "spec"
    STATE = "state"
