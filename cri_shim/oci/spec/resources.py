"""Resources: CRI's limits as the runtime-spec writes them, and the OOM score.

Rules of the file: 0 and "" mean "not set", as everywhere in CRI; -1 means "no limit" where the kernel has such a
word. Limits of controllers this node lacks are left out only where CRI's callers always send them (huge pages,
swap); the `unified` map on cgroup v1 is refused. Units: bytes, microseconds, shares.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cri_shim.config.model import HandlerKind
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.checks import in_range, refuse
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim._pb.cri.v1.api_pb2 import LinuxContainerResources
    from cri_shim.oci.spec.inputs import HandlerFacts, NodeFacts, Spec

_MAX_INT64 = 2**63 - 1
_MAX_QUOTA = 2**44 - 1
"""The kernel's, in microseconds."""
_MAX_CPUS = 65536
"""More than any kernel counts, of CPUs and of memory nodes."""
_MAX_PIDS = 4194304
"""PID_MAX_LIMIT: pids.max takes no larger number."""
_CPU_LIST = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
_PAGE_SIZE = re.compile(r"[0-9]{1,6}(KB|MB|GB)")
_UNIFIED_KEY = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)+")
_UNIFIED_VALUE = re.compile(r"[\x20-\x7e\t\n]{0,4096}")
_INTEGER = re.compile(r"-?[0-9]{1,18}")

_FIELD_OF_FILE = {
    "cpu.cfs_period_us": "cpu_period",
    "cpu.cfs_quota_us": "cpu_quota",
    "cpu.max": "cpu_quota",
    "cpu.shares": "cpu_shares",
    "cpu.weight": "cpu_shares",
    "cpuset.cpus": "cpuset_cpus",
    "cpuset.mems": "cpuset_mems",
    "memory.limit_in_bytes": "memory_limit_in_bytes",
    "memory.max": "memory_limit_in_bytes",
    "memory.memsw.limit_in_bytes": "memory_swap_limit_in_bytes",
    "memory.swap.max": "memory_swap_limit_in_bytes",
}
_KEPT = ("oom_score_adj", "hugepage_limits")
_PIDS_LIMIT_ANNOTATIONS = ("cri-shim.io/pids-limit", "cgroup.pids.max")
FILES_LIMIT_ANNOTATION = "cri-shim.io/files-limit"


def build_resources(resources: LinuxContainerResources, node: NodeFacts) -> Spec:
    """The `linux.resources` object for CPU, memory, huge pages and the unified map; for creation and update.

    Raises InvalidArgumentError naming the field.
    """
    result: Spec = {}
    if cpu := _cpu(resources):
        result["cpu"] = cpu
    if memory := _memory(resources, node):
        result["memory"] = memory
    if hugepages := _hugepages(resources, node):
        result["hugepageLimits"] = hugepages
    if resources.unified:
        result["unified"] = _unified(resources.unified, node)
    return result


def field_of_limit(cgroup_file: str) -> str:
    """The field of a request that ends in this file of a cgroup, of either version; "" for none."""
    if cgroup_file.startswith("hugetlb."):
        return "hugepage_limits"
    return _FIELD_OF_FILE.get(cgroup_file, "")


def merge_resources(
    now: LinuxContainerResources, wanted: LinuxContainerResources
) -> LinuxContainerResources:
    """What is in force after an update: what `wanted` sets, and what else there is.

    The OOM score stays: it belongs to processes that run already. So do huge pages, see `check_unchangeable`. The limit
    of swap counts memory too, so it follows a limit of memory that changes alone, see `_swap_beside`.
    """
    merged = type(now)()
    merged.CopyFrom(now)
    for descriptor, value in wanted.ListFields():
        if descriptor.name == "unified":
            merged.unified.update(value)
        elif descriptor.name not in _KEPT:
            setattr(merged, descriptor.name, value)
    if wanted.memory_limit_in_bytes and not wanted.memory_swap_limit_in_bytes:
        merged.memory_swap_limit_in_bytes = _swap_beside(wanted.memory_limit_in_bytes, now)
    return merged


def _swap_beside(limit: int, now: LinuxContainerResources) -> int:
    """The limit of memory and swap together that goes with a new limit of memory alone; 0: none was asked for.

    It stays what it is, but a container that can't swap goes on so, and no kernel takes one below the limit of memory.
    """
    swap = now.memory_swap_limit_in_bytes
    if swap > 0 and (limit < 0 or swap < limit or swap == now.memory_limit_in_bytes):
        return limit
    return swap


def check_unchangeable(
    now: LinuxContainerResources, wanted: LinuxContainerResources, node: NodeFacts
) -> None:
    """Refuse to change what no OCI runtime changes: limits of huge pages.

    Callers repeat them, so only another limit is refused. Raises InvalidArgumentError (malformed), UnsupportedError.
    """
    in_range(wanted.oom_score_adj, "oom_score_adj", low=-1000, high=1000)
    limits = {each["pageSize"]: each["limit"] for each in _hugepages(now, node)}
    for each in _hugepages(wanted, node):
        if each["limit"] != limits.get(each["pageSize"], 0):
            raise UnsupportedError(
                f"hugepage_limits: {each['pageSize']}: the limit can't be changed once the container is created"
            )


def pids_limit(annotations: Mapping[str, str]) -> int | None:
    """The limit that a container's annotations ask for: None unset, -1 none.

    Raises InvalidArgumentError for what is no number the kernel takes.
    """
    for key in _PIDS_LIMIT_ANNOTATIONS:
        if key in annotations:
            limit = _annotation_number(annotations, key)
            return (
                in_range(limit, f"annotations[{quoted(key)}]", low=1, high=_MAX_PIDS)
                if limit > 0
                else -1
            )
    return None


def files_limit(
    annotations: Mapping[str, str], node: NodeFacts, handler: HandlerFacts
) -> int | None:
    """How many files a container may have open at once, as its annotations ask: None unset, -1 any number.

    It is no part of the runtime-spec, whose runtimes don't know it; see `host/cgroups/open_files`. Raises
    InvalidArgumentError for what is no number, and for a limit that would not hold here.
    """
    if FILES_LIMIT_ANNOTATION not in annotations:
        return None
    limit = _annotation_number(annotations, FILES_LIMIT_ANNOTATION)
    if limit <= 0:
        return -1
    lack = node.lack_of_files_limits
    if handler.kind is HandlerKind.VM:
        lack = f"the processes of the handler {handler.name} have a kernel of their own"
    if lack:
        refuse(
            f"annotations[{FILES_LIMIT_ANNOTATION!r}]",
            limit,
            f"{lack}; remove the annotation, or set it to -1",
        )
    return limit


def oom_score_adj(wanted: int, node: NodeFacts) -> int:
    """The score, raised to what this process may set if it must be.

    Raises InvalidArgumentError outside -1000..1000.
    """
    in_range(wanted, "oom_score_adj", low=-1000, high=1000)
    return wanted if node.min_oom_score_adj is None else max(wanted, node.min_oom_score_adj)


def _cpu(resources: LinuxContainerResources) -> Spec:
    cpu: Spec = {}
    if resources.cpu_shares:
        shares = in_range(resources.cpu_shares, "cpu_shares", low=0, high=_MAX_INT64)
        # The kernel's own bounds. cgroup v1 would clamp too, but a conversion to v2's weight overflows.
        cpu["shares"] = min(max(shares, 2), 262144)
    if resources.cpu_quota:
        if resources.cpu_quota != -1:
            in_range(resources.cpu_quota, "cpu_quota", low=1000, high=_MAX_QUOTA)
        cpu["quota"] = resources.cpu_quota
    if resources.cpu_period:
        cpu["period"] = in_range(resources.cpu_period, "cpu_period", low=1000, high=1_000_000)
    for field, key, value in (
        ("cpuset_cpus", "cpus", resources.cpuset_cpus),
        ("cpuset_mems", "mems", resources.cpuset_mems),
    ):
        if value:
            if _CPU_LIST.fullmatch(value) is None or not _ascends(value):
                refuse(field, value, "must be a list like 0-3,7")
            cpu[key] = value
    return cpu


def _ascends(cpu_list: str) -> bool:
    """Whether no range goes backwards, and none is what no kernel counts to."""
    ranges = (part.partition("-") for part in cpu_list.split(","))
    return all(int(first) <= int(last or first) < _MAX_CPUS for first, _, last in ranges)


def _memory(resources: LinuxContainerResources, node: NodeFacts) -> Spec:
    limit, swap = resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes
    in_range(limit, "memory_limit_in_bytes", low=-1, high=_MAX_INT64)
    in_range(swap, "memory_swap_limit_in_bytes", low=-1, high=_MAX_INT64)
    memory: Spec = {}
    if limit:
        memory["limit"] = limit
    if node.swap_accounting and (swap or limit):
        # The spec's swap counts memory and swap together: equal to the limit, the container can't swap.
        memory["swap"] = swap or limit
        if swap > 0 and limit <= 0:
            refuse(
                "memory_swap_limit_in_bytes", swap, "needs memory_limit_in_bytes: it counts both"
            )
        if 0 < memory["swap"] < limit:
            raise InvalidArgumentError(
                f"memory_swap_limit_in_bytes: {swap}: must not be below memory_limit_in_bytes ({limit}), "
                "since it counts both"
            )
    return memory


def _hugepages(resources: LinuxContainerResources, node: NodeFacts) -> list[Spec]:
    limits = {}
    for limit in resources.hugepage_limits:
        if _PAGE_SIZE.fullmatch(limit.page_size) is None:
            refuse("hugepage_limits.page_size", limit.page_size, "must be a size like 2MB or 1GB")
        # kubelet names every size it has ever heard of, with 0: only those of this node can be written.
        if limit.page_size in node.hugepage_sizes:
            limits[limit.page_size] = limit.limit
    return [{"pageSize": size, "limit": limit} for size, limit in limits.items()]


def _unified(unified: Mapping[str, str], node: NodeFacts) -> dict[str, str]:
    if not node.cgroup_v2:
        raise InvalidArgumentError("unified: this node's cgroups are version 1")
    for key, value in unified.items():
        # A key is a file name in the cgroup; CVE-2023-6476 came in by the annotations that fed this map.
        if _UNIFIED_KEY.fullmatch(key) is None:
            refuse("unified", key, "is not the name of a cgroup file, e.g. memory.high")
        if _UNIFIED_VALUE.fullmatch(value) is None:
            refuse(
                f"unified[{quoted(key)}]", value, "contains unprintable characters or is too long"
            )
    return dict(unified)


def _annotation_number(annotations: Mapping[str, str], key: str) -> int:
    text = annotations[key]
    if _INTEGER.fullmatch(text) is None:
        refuse(f"annotations[{quoted(key)}]", text, "must be an integer, -1 for no limit")
    return int(text)
