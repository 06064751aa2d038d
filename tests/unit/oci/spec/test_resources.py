from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import HugepageLimit, LinuxContainerResources
from cri_shim.config.model import HandlerKind
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.inputs import HandlerFacts
from cri_shim.oci.spec.resources import (
    build_resources,
    check_unchangeable,
    field_of_limit,
    files_limit,
    merge_resources,
    oom_score_adj,
    pids_limit,
)
from tests.unit.oci.spec.cases import GOLDEN_CGROUP, V2_NODE

NODE = GOLDEN_CGROUP.node


def build(node: Any = NODE, **fields: Any) -> dict[str, Any]:
    return build_resources(LinuxContainerResources(**fields), node)


@pytest.mark.parametrize("text", ["3-0", "0,5-4", "70000", "0-65536", "0-", "1.2"])
def test_list_of_cpus_that_no_node_has_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cpuset_cpus"):
        build(cpuset_cpus=text)


@pytest.mark.parametrize("quota", [999, 2**44, -2])
def test_quota_that_no_kernel_takes_is_refused(quota: int) -> None:
    with pytest.raises(InvalidArgumentError, match="cpu_quota"):
        build(cpu_quota=quota)
    assert build(cpu_quota=2**44 - 1)


def test_file_of_a_cgroup_is_known_by_the_field_that_ends_in_it() -> None:
    fields = LinuxContainerResources.DESCRIPTOR.fields_by_name
    for file in ("cpuset.cpus", "cpu.max", "memory.swap.max", "hugetlb.2MB.limit_in_bytes"):
        assert field_of_limit(file) in fields
    assert field_of_limit("pids.max") == field_of_limit("") == ""


def test_nothing_set_gives_nothing() -> None:
    assert build() == {}


@pytest.mark.parametrize(
    ("fields", "cpu"),
    [
        ({"cpu_shares": 512}, {"shares": 512}),
        ({"cpu_shares": 1}, {"shares": 2}),
        ({"cpu_shares": 10**9}, {"shares": 262144}),
        ({"cpu_quota": -1, "cpu_period": 100000}, {"quota": -1, "period": 100000}),
        ({"cpuset_cpus": "0-3,7", "cpuset_mems": "0"}, {"cpus": "0-3,7", "mems": "0"}),
    ],
)
def test_cpu_is_mapped(fields: dict[str, Any], cpu: dict[str, Any]) -> None:
    assert build(**fields) == {"cpu": cpu}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cpu_shares": -1}, "cpu_shares"),
        ({"cpu_quota": -2}, "cpu_quota"),
        ({"cpu_quota": 999}, "cpu_quota"),
        ({"cpu_period": -1}, "cpu_period"),
        ({"cpu_period": 999}, "cpu_period"),
        ({"cpu_period": 2000000}, "cpu_period"),
        ({"cpuset_cpus": "0-3;rm"}, "cpuset_cpus"),
        ({"cpuset_mems": "0\n"}, "cpuset_mems"),
        ({"memory_limit_in_bytes": -2}, "memory_limit_in_bytes"),
        ({"memory_swap_limit_in_bytes": -2}, "memory_swap_limit_in_bytes"),
        (
            {"memory_limit_in_bytes": 100, "memory_swap_limit_in_bytes": 99},
            "memory_swap_limit_in_bytes",
        ),
        (
            {"memory_limit_in_bytes": -1, "memory_swap_limit_in_bytes": 99},
            "memory_swap_limit_in_bytes",
        ),
        (
            {"memory_swap_limit_in_bytes": 99},
            "memory_swap_limit_in_bytes: 99: needs memory_limit_in_bytes",
        ),
        ({"hugepage_limits": [HugepageLimit(page_size="2M")]}, "page_size"),
    ],
)
def test_impossible_number_is_refused_with_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=field):
        build(**fields)


def test_container_with_a_limit_does_not_swap_unless_it_asks() -> None:
    limited = build(memory_limit_in_bytes=100)
    assert limited == {"memory": {"limit": 100, "swap": 100}}
    swapping = build(memory_limit_in_bytes=100, memory_swap_limit_in_bytes=150)
    assert swapping == {"memory": {"limit": 100, "swap": 150}}
    unlimited = build(memory_limit_in_bytes=100, memory_swap_limit_in_bytes=-1)
    assert unlimited == {"memory": {"limit": 100, "swap": -1}}


@pytest.mark.parametrize(
    ("now", "limit", "then"),
    [
        ((64, 96), 128, 128),
        ((64, 96), 80, 96),
        ((64, 96), 32, 96),
        ((64, 96), -1, -1),
        ((64, -1), 128, -1),
        ((64, 64), 128, 128),
        ((64, 64), 32, 32),
        ((64, 0), 128, 0),
        ((0, 0), 64, 0),
    ],
)
def test_limit_of_swap_follows_a_limit_of_memory_that_changes_alone(
    now: tuple[int, int], limit: int, then: int
) -> None:
    memory, swap = now
    merged = merge_resources(
        LinuxContainerResources(memory_limit_in_bytes=memory, memory_swap_limit_in_bytes=swap),
        LinuxContainerResources(memory_limit_in_bytes=limit),
    )
    assert merged.memory_swap_limit_in_bytes == then
    assert build_resources(merged, NODE)["memory"] == {"limit": limit, "swap": then or limit}


def test_limit_of_swap_that_is_told_is_the_one() -> None:
    now = LinuxContainerResources(memory_limit_in_bytes=64, memory_swap_limit_in_bytes=64)
    wanted = LinuxContainerResources(memory_limit_in_bytes=32, memory_swap_limit_in_bytes=48)
    assert merge_resources(now, wanted) == wanted
    with pytest.raises(InvalidArgumentError, match="memory_swap_limit_in_bytes: 48: must not be"):
        build_resources(
            merge_resources(now, LinuxContainerResources(memory_swap_limit_in_bytes=48)), NODE
        )


def test_swap_is_left_out_where_it_is_not_counted() -> None:
    node = replace(NODE, swap_accounting=False)
    assert build(node, memory_limit_in_bytes=100) == {"memory": {"limit": 100}}
    assert build(node, memory_swap_limit_in_bytes=100) == {}


def test_huge_page_sizes_of_other_machines_are_left_out() -> None:
    limits = [
        HugepageLimit(page_size="2MB", limit=2**63),
        HugepageLimit(page_size="1GB", limit=0),
    ]
    assert build(hugepage_limits=limits) == {
        "hugepageLimits": [{"pageSize": "2MB", "limit": 2**63}]
    }


def test_unified_map_is_for_cgroup_v2() -> None:
    assert build(V2_NODE, unified={"memory.high": "1"}) == {"unified": {"memory.high": "1"}}
    with pytest.raises(InvalidArgumentError, match="cgroup v1"):
        build(unified={"memory.high": "1"})


@pytest.mark.parametrize("key", ["", "cgroup", "../memory.max", "memory.max/x", "memory.\n"])
def test_unified_key_is_a_file_of_the_cgroup(key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="unified"):
        build(V2_NODE, unified={key: "1"})


def test_unified_value_is_printable() -> None:
    assert build(V2_NODE, unified={"io.max": "8:0 rbps=1\n8:16 rbps=2"})
    with pytest.raises(InvalidArgumentError, match="unified"):
        build(V2_NODE, unified={"io.max": "\x1b"})


@pytest.mark.parametrize(
    ("annotations", "limit"),
    [
        ({}, None),
        ({"cgroup.pids.max": "100"}, 100),
        ({"cgroup.pids.max": "-1"}, -1),
        ({"cgroup.pids.max": "0"}, -1),
        ({"cri-shim.io/pids-limit": "7", "cgroup.pids.max": "9"}, 7),
    ],
)
def test_pids_limit_comes_from_the_annotations(
    annotations: dict[str, str], limit: int | None
) -> None:
    assert pids_limit(annotations) == limit


@pytest.mark.parametrize("text", ["", "max", "1.5", "\u0661", " 1", "4194305", "9" * 30])
def test_pids_limit_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cgroup\.pids\.max"):
        pids_limit({"cgroup.pids.max": text})


FILES = "cri-shim.io/files-limit"
COUNTS_FILES = replace(NODE, lack_of_files_limits="")


@pytest.mark.parametrize(
    ("annotations", "limit"),
    [({}, None), ({FILES: "1"}, 1), ({FILES: "500000"}, 500000), ({FILES: "0"}, -1)]
    + [({FILES: text}, -1) for text in ("-1", "-7")],
)
def test_files_limit_comes_from_the_annotation(
    annotations: dict[str, str], limit: int | None
) -> None:
    assert files_limit(annotations, COUNTS_FILES, HandlerFacts("runc")) == limit


@pytest.mark.parametrize("text", ["", "max", "1.5", "\u0661", " 1", "1\n", "1\0", "9" * 30])
def test_files_limit_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"files-limit.*must be an integer"):
        files_limit({FILES: text}, COUNTS_FILES, HandlerFacts("runc"))


def test_files_limit_is_refused_where_it_would_not_hold() -> None:
    lacking = replace(NODE, lack_of_files_limits="this node has none")
    with pytest.raises(InvalidArgumentError, match=r"files-limit.*this node has none"):
        files_limit({FILES: "100"}, lacking, HandlerFacts("runc"))
    vm = HandlerFacts("kata", kind=HandlerKind.VM)
    with pytest.raises(InvalidArgumentError, match=r"files-limit.*kata run on another kernel"):
        files_limit({FILES: "100"}, COUNTS_FILES, vm)
    assert files_limit({FILES: "-1"}, lacking, vm) == -1


def test_oom_score_is_raised_to_what_the_process_may_set() -> None:
    assert oom_score_adj(-500, NODE) == -500
    assert oom_score_adj(-500, replace(NODE, min_oom_score_adj=0)) == 0
    assert oom_score_adj(500, replace(NODE, min_oom_score_adj=0)) == 500
    for value in (-1001, 1001):
        with pytest.raises(InvalidArgumentError, match="oom_score_adj"):
            oom_score_adj(value, NODE)


def test_update_changes_what_it_sets_and_keeps_the_rest() -> None:
    now = LinuxContainerResources(
        cpu_shares=5, cpuset_cpus="0", oom_score_adj=7, unified={"a.b": "1", "c.d": "2"}
    )
    wanted = LinuxContainerResources(
        cpuset_cpus="1", memory_limit_in_bytes=9, oom_score_adj=8, unified={"c.d": "3"}
    )
    assert merge_resources(now, wanted) == LinuxContainerResources(
        cpu_shares=5,
        cpuset_cpus="1",
        memory_limit_in_bytes=9,
        oom_score_adj=7,
        unified={"a.b": "1", "c.d": "3"},
    )
    assert now.cpuset_cpus == "0"


def huge(limit: int, size: str = "2MB") -> LinuxContainerResources:
    return LinuxContainerResources(hugepage_limits=[HugepageLimit(page_size=size, limit=limit)])


def test_limits_of_huge_pages_are_repeated_and_not_changed() -> None:
    node = GOLDEN_CGROUP.node
    check_unchangeable(huge(4), huge(4), node)
    check_unchangeable(huge(4), huge(8, "64KB"), node)
    check_unchangeable(LinuxContainerResources(), huge(0), node)
    with pytest.raises(UnsupportedError, match="hugepage_limits: 2MB"):
        check_unchangeable(huge(4), huge(8), node)
