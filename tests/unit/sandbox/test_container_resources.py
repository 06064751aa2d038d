from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    CriShimError,
    InvalidArgumentError,
    RuntimeCommandError,
    WrongStateError,
)
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.rpc.translate_containers import container_status
from cri_shim.sandbox.container_resources import resources_in_force
from tests.fakes.node_harness import container_config

if TYPE_CHECKING:
    from typing import Any

    from cri_shim.sandbox.store.store import Container
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio

MIB = 1 << 20


async def limited(harness: NodeHarness) -> Container:
    """A created container with limits."""
    sandbox = await harness.run_pod()
    config = container_config()
    config.annotations["cgroup.pids.max"] = "50"
    config.linux.resources.CopyFrom(
        api.LinuxContainerResources(
            memory_limit_in_bytes=64 * MIB, cpu_quota=5000, cpu_period=10_000, oom_score_adj=7
        )
    )
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    return harness.containers.find(created)


async def update(
    harness: NodeHarness,
    container: Container,
    annotations: dict[str, str] | None = None,
    **fields: Any,
) -> None:
    resources = api.LinuxContainerResources(**fields)
    await harness.containers.update_container_resources(container.id, resources, annotations or {})


async def test_runtime_is_told_the_whole_set_of_which_the_request_is_a_part(
    harness: NodeHarness,
) -> None:
    container = await limited(harness)
    await update(harness, container, cpuset_cpus="0-1", cpu_quota=-1)
    [(told, document)] = harness.runtime.updates
    assert told == container.id
    assert document == {
        "cpu": {"quota": -1, "period": 10_000, "cpus": "0-1"},
        "memory": {"limit": 64 * MIB},
        "pids": {"limit": 50},
    }
    assert not harness.paths.container(container.id).resources_file.exists()


async def test_limits_of_memory_and_of_swap_are_told_together(
    harness: NodeHarness,
) -> None:
    """In one document, which every runtime takes in whichever order its kernel needs.

    On cgroup v2, which counts swap alone, runc and crun write the difference, and crun refuses one limit without the
    other or a difference below zero.
    """
    harness.node = replace(harness.node, swap_accounting=True)
    harness.rebuild()
    container = await limited(harness)
    await update(harness, container, memory_swap_limit_in_bytes=96 * MIB)
    for memory in (80, 128, 48):
        await update(harness, container, memory_limit_in_bytes=memory * MIB)
    await update(harness, container, memory_limit_in_bytes=-1)
    await update(harness, container, cpu_shares=9)
    told = [document["memory"] for _, document in harness.runtime.updates]
    assert [set(memory) for memory in told] == [{"limit", "swap"}] * 6
    # memory.max and memory.swap.max, -1 for max.
    on_v2 = [(m["limit"], -1 if m["swap"] < 0 else m["swap"] - m["limit"]) for m in told]
    bounded = [(64, 32), (80, 16), (128, 0), (48, 0)]
    assert on_v2 == [(m * MIB, swap * MIB) for m, swap in bounded] + [(-1, -1)] * 2


async def test_status_shows_what_is_in_force_and_so_does_the_next_daemons(
    harness: NodeHarness,
) -> None:
    container = await limited(harness)
    await update(harness, container, {"cgroup.pids.max": "-1"}, cpu_shares=9, oom_score_adj=900)
    expected = api.LinuxContainerResources(
        memory_limit_in_bytes=64 * MIB,
        cpu_quota=5000,
        cpu_period=10_000,
        cpu_shares=9,
        oom_score_adj=7,
    )
    assert container_status(container).resources.linux == expected
    [(_, again)] = harness.stored.load()
    assert not isinstance(again, CriShimError)
    assert resources_in_force(again) == expected
    await update(harness, container, cpu_shares=10)
    assert harness.runtime.updates[-1][1]["pids"] == {"limit": -1}


async def test_exited_container_only_remembers(harness: NodeHarness) -> None:
    container = await limited(harness)
    await harness.containers.start_container(container.id)
    await harness.containers.stop_container(container.id, 0)
    await update(harness, container, cpu_shares=9)
    assert harness.runtime.updates == []
    assert resources_in_force(container).cpu_shares == 9


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cpu_period": 7}, "cpu_period"),
        ({"cpuset_mems": "x"}, "cpuset_mems"),
        ({"memory_limit_in_bytes": -2}, "memory_limit_in_bytes"),
        ({"unified": {"memory.high": "1"}}, "unified"),
        ({"oom_score_adj": 1001}, "oom_score_adj"),
        ({"hugepage_limits": [{"page_size": "big"}]}, r"hugepage_limits\.page_size"),
    ],
)
async def test_what_can_not_be_is_refused_by_its_field_and_changes_nothing(
    harness: NodeHarness, fields: dict[str, Any], says: str
) -> None:
    container = await limited(harness)
    before = resources_in_force(container)
    with pytest.raises(InvalidArgumentError, match=says):
        await update(harness, container, **fields)
    with pytest.raises(InvalidArgumentError, match=r"cgroup\.pids\.max"):
        await update(harness, container, {"cgroup.pids.max": "many"})
    assert resources_in_force(container) == before
    assert harness.runtime.updates == []


def uses(
    harness: NodeHarness, container: Container, used: int, *, working_set: int | None = None
) -> None:
    directory = harness.cgroup_paths.directory_of(container)
    harness.kernel.cgroups.stats[directory] = CgroupStats(
        read_at_ns=1,
        memory_usage_bytes=used,
        working_set_bytes=used if working_set is None else working_set,
    )


async def test_memory_in_use_is_named_when_the_kernel_refuses_to_take_it(
    harness: NodeHarness,
) -> None:
    container = await limited(harness)
    uses(harness, container, 40 * MIB)
    harness.runtime.refuses_updates = "device or resource busy"
    words = f"memory_limit_in_bytes: {8 * MIB} is less than the {40 * MIB} bytes in use: device"
    with pytest.raises(WrongStateError, match=words):
        await update(harness, container, memory_limit_in_bytes=8 * MIB)
    with pytest.raises(RuntimeCommandError, match="busy"):
        await update(harness, container, memory_limit_in_bytes=50 * MIB)
    assert resources_in_force(container).memory_limit_in_bytes == 64 * MIB


async def test_value_that_the_kernel_does_not_take_is_refused_by_its_field(
    harness: NodeHarness,
) -> None:
    container = await limited(harness)
    before = resources_in_force(container)
    uses(harness, container, MIB)
    harness.runtime.refuses_updates = "write /sys/fs/cgroup/cpuset/c/cpuset.cpus: invalid argument"
    with pytest.raises(InvalidArgumentError, match="cpuset_cpus: the kernel"):
        await update(harness, container, cpuset_cpus="9")
    assert resources_in_force(container) == before


async def test_memory_in_use_is_not_taken_where_the_kernel_would_kill_for_it(
    harness: NodeHarness,
) -> None:
    container = await limited(harness)
    harness.kernel.cgroups.mode = "v2"
    uses(harness, container, 60 * MIB, working_set=10 * MIB)
    with pytest.raises(WrongStateError, match="in use"):
        await update(harness, container, memory_limit_in_bytes=8 * MIB)
    await update(harness, container, memory_limit_in_bytes=20 * MIB)
    assert len(harness.runtime.updates) == 1


async def test_end_that_is_about_to_be_noted_leaves_nothing_to_limit(harness: NodeHarness) -> None:
    container = await limited(harness)
    assert container.status.process is not None
    harness.monitors.write_exit_files = False
    harness.kernel.processes[container.status.process.pid].on_end = None
    harness.kernel.watches.clear()
    harness.kernel.end(container.status.process.pid)
    harness.runtime.refuses_updates = "container not running"
    await update(harness, container, cpu_shares=9)
    assert resources_in_force(container).cpu_shares == 9
