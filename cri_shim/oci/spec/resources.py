"""Resources: CRI's limits in the form of the runtime-spec, and the OOM score.

Rules: 0 and "" mean "not set", as everywhere in CRI; -1 means "no limit" where the kernel has that. Limits for
controllers that the node lacks are dropped only where CRI's callers always send them (huge pages, swap). The `unified`
map is refused on cgroup v1. Units: bytes, microseconds, shares.
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
"""The kernel's maximum, in microseconds."""
_MAX_CPUS = 65536
"""More CPUs, and memory nodes, than any kernel supports."""
_MAX_PIDS = 4194304
"""PID_MAX_LIMIT, the kernel's maximum for pids.max."""
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
    """The `linux.resources` object for CPU, memory, huge pages and the unified map, for creation and update.

    Raises InvalidArgumentError with the field.
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
    """The request's field that sets this cgroup file, of either version; "" if there is none."""
    if cgroup_file.startswith("hugetlb."):
        return "hugepage_limits"
    return _FIELD_OF_FILE.get(cgroup_file, "")


def merge_resources(
    now: LinuxContainerResources, wanted: LinuxContainerResources
) -> LinuxContainerResources:
    """The resources in force after an update: those of `wanted` that are set, and the rest of `now`.

    The OOM score stays, since it belongs to running processes. Huge pages stay too (`check_unchangeable`). The swap
    limit includes memory, so it follows a memory limit that is changed alone (`_swap_beside`).
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
    """The limit of memory and swap together for a new memory limit alone; 0 if none is set.

    It stays as it is, except that a container without swap stays without, and that no kernel accepts it below the
    memory limit.
    """
    swap = now.memory_swap_limit_in_bytes
    if swap > 0 and (limit < 0 or swap < limit or swap == now.memory_limit_in_bytes):
        return limit
    return swap


def check_unchangeable(
    now: LinuxContainerResources, wanted: LinuxContainerResources, node: NodeFacts
) -> None:
    """Refuse a change of huge page limits, which no OCI runtime can update.

    Callers repeat the present limits, so only another value is refused. Raises InvalidArgumentError (malformed),
    UnsupportedError.
    """
    in_range(wanted.oom_score_adj, "oom_score_adj", low=-1000, high=1000)
    limits = {each["pageSize"]: each["limit"] for each in _hugepages(now, node)}
    for each in _hugepages(wanted, node):
        if each["limit"] != limits.get(each["pageSize"], 0):
            raise UnsupportedError(
                f"hugepage_limits: {each['pageSize']}: the limit can't be changed once the container is created"
            )


def pids_limit(annotations: Mapping[str, str]) -> int | None:
    """The pids limit in a container's annotations: None if unset, -1 for no limit.

    Raises InvalidArgumentError for a value that the kernel doesn't accept.
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
    """The limit of open files in a container's annotations: None if unset, -1 for no limit.

    The runtime-spec has no such limit (`host/cgroups/open_files` enforces it). Raises InvalidArgumentError for a value
    that is no number, and for a limit that can't be enforced here.
    """
    if FILES_LIMIT_ANNOTATION not in annotations:
        return None
    limit = _annotation_number(annotations, FILES_LIMIT_ANNOTATION)
    if limit <= 0:
        return -1
    lack = node.lack_of_files_limits
    if handler.kind is HandlerKind.VM:
        lack = f"processes of the runtime handler {handler.name} run on another kernel"
    if lack:
        refuse(
            f"annotations[{FILES_LIMIT_ANNOTATION!r}]",
            limit,
            f"{lack}; remove the annotation, or set it to -1",
        )
    return limit


def oom_score_adj(wanted: int, node: NodeFacts) -> int:
    """The score, raised if necessary to the lowest that this process may set.

    Raises InvalidArgumentError outside -1000..1000.
    """
    in_range(wanted, "oom_score_adj", low=-1000, high=1000)
    return wanted if node.min_oom_score_adj is None else max(wanted, node.min_oom_score_adj)


def _cpu(resources: LinuxContainerResources) -> Spec:
    cpu: Spec = {}
    if resources.cpu_shares:
        shares = in_range(resources.cpu_shares, "cpu_shares", low=0, high=_MAX_INT64)
        # The kernel's bounds. cgroup v1 clamps by itself, but the runtime's conversion to v2's weight would overflow.
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
    """Whether every range ascends and stays below `_MAX_CPUS`."""
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
        # The spec's swap includes memory: equal to the memory limit, it means no swap.
        memory["swap"] = swap or limit
        if swap > 0 and limit <= 0:
            refuse(
                "memory_swap_limit_in_bytes",
                swap,
                "needs memory_limit_in_bytes: it includes memory",
            )
        if 0 < memory["swap"] < limit:
            raise InvalidArgumentError(
                f"memory_swap_limit_in_bytes: {swap}: must not be below memory_limit_in_bytes ({limit}), "
                "since it includes memory"
            )
    return memory


def _hugepages(resources: LinuxContainerResources, node: NodeFacts) -> list[Spec]:
    limits = {}
    for limit in resources.hugepage_limits:
        if _PAGE_SIZE.fullmatch(limit.page_size) is None:
            refuse("hugepage_limits.page_size", limit.page_size, "must be a size like 2MB or 1GB")
        # The kubelet sends every page size that it knows, with 0. Only this node's sizes have cgroup files.
        if limit.page_size in node.hugepage_sizes:
            limits[limit.page_size] = limit.limit
    return [{"pageSize": size, "limit": limit} for size, limit in limits.items()]


def _unified(unified: Mapping[str, str], node: NodeFacts) -> dict[str, str]:
    if not node.cgroup_v2:
        raise InvalidArgumentError("unified: this node uses cgroup v1")
    for key, value in unified.items():
        # A key becomes a file name in the cgroup. CVE-2023-6476 used annotations that set this map.
        if _UNIFIED_KEY.fullmatch(key) is None:
            refuse("unified", key, "is not the name of a cgroup file, such as memory.high")
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
