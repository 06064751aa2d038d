"""The limit of open files, from the annotation to the cgroup: in force before the start, undone like all the rest."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import (
    CriShimError,
    InvalidArgumentError,
    ResourceExhaustedError,
    RuntimeCommandError,
    WrongStateError,
)
from cri_shim.host.cgroups.usage import CgroupStats
from cri_shim.sandbox.store.model import ContainerState
from tests.fakes.node_harness import NodeHarness, container_config
from tests.unit.sandbox.exec_node import exec_node

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.sandbox.store.store import Container, Sandbox

pytestmark = pytest.mark.asyncio

FILES = "cri-shim.io/files-limit"


async def created(harness: NodeHarness, limit: str, sandbox: Sandbox | None = None) -> Container:
    sandbox = sandbox or await harness.run_pod()
    config = container_config()
    config.annotations[FILES] = limit
    container_id = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    return harness.containers.find(container_id)


def in_force(harness: NodeHarness) -> list[int]:
    return list(harness.kernel.cgroups.files_limits.values())


def pid_of(container: Container) -> int:
    assert container.status.process is not None
    return container.status.process.pid


async def test_limit_holds_for_the_process_before_it_is_started(harness: NodeHarness) -> None:
    container = await created(harness, "100")
    assert container.state is ContainerState.CREATED
    assert harness.kernel.cgroups.files_limits == {
        harness.cgroup_paths.directory_of(container): 100
    }
    assert harness.kernel.cgroups.limited_files == {pid_of(container)}
    passed = harness.points.passed
    assert passed.index("monitor.created") < passed.index("files.limited")
    await harness.containers.start_container(container.id)


@pytest.mark.parametrize("limit", ["0", "-1"])
async def test_no_limit_makes_no_cgroup(harness: NodeHarness, limit: str) -> None:
    await created(harness, limit)
    assert "files.limit" not in harness.points.passed


async def test_kernel_without_the_controller_refuses_before_anything_is_made(
    harness: NodeHarness,
) -> None:
    harness.kernel.cgroups.lack_of_files_limits = "this kernel has no such controller"
    other = harness.restarted()
    sandbox = await other.run_pod()
    before = other.leftovers()
    with pytest.raises(InvalidArgumentError, match=f"{FILES}.*this kernel has no such controller"):
        await created(other, "100", sandbox)
    assert other.leftovers() == before
    await created(other, "-1", sandbox)


async def test_limit_below_what_the_first_process_needs_is_refused_by_its_name(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    with pytest.raises(InvalidArgumentError, match=f"{FILES}.*: 2 is too low"):
        await created(harness, "2", sandbox)
    assert harness.leftovers() == before


@pytest.mark.parametrize("point", ["files.limit", "files.limited"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
async def test_limit_that_fails_is_undone_with_its_cgroup(
    harness: NodeHarness, point: str, number: int
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    harness.points.fail(point, OSError(number, "no"))
    with pytest.raises(CriShimError, match="limiting the open files"):
        await created(harness, "100", sandbox)
    assert harness.leftovers() == before
    assert in_force(harness) == []
    harness.points.heal()
    await created(harness, "100", sandbox)


@pytest.mark.parametrize("point", ["files.limit", "files.limited"])
async def test_a_daemon_that_dies_at_the_limit_leaves_nothing_to_its_successor(
    harness: NodeHarness, point: str
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    successor = await harness.crashed_at(point, created(harness, "100", sandbox))
    await successor.recovery.run()
    await successor.settle()
    assert successor.leftovers() == before
    assert in_force(successor) == []


async def test_end_of_a_container_takes_the_cgroup_away(harness: NodeHarness) -> None:
    container = await created(harness, "100")
    await harness.containers.start_container(container.id)
    await harness.containers.stop_container(container.id, 0)
    await harness.settle()
    assert in_force(harness) == []


# --- updates -----------------------------------------------------------------------------------------------------


def refuse_updates(harness: NodeHarness, container: Container) -> None:
    directory = harness.cgroup_paths.directory_of(container)
    harness.kernel.cgroups.stats[directory] = CgroupStats(read_at_ns=1)
    harness.runtime.refuses_updates = "no"


async def update(harness: NodeHarness, container: Container, limit: str) -> None:
    resources = container.config.linux.resources
    await harness.containers.update_container_resources(container.id, resources, {FILES: limit})


async def test_update_changes_the_limit_and_takes_it_off(harness: NodeHarness) -> None:
    container = await created(harness, "100")
    await update(harness, container, "50")
    assert in_force(harness) == [50]
    await update(harness, container, "-1")
    assert in_force(harness) == [-1]


async def test_update_limits_a_container_that_had_none(harness: NodeHarness) -> None:
    container = await harness.create(await harness.run_pod())
    await update(harness, container, "-1")
    assert in_force(harness) == []
    await update(harness, container, "50")
    assert in_force(harness) == [50]
    assert harness.kernel.cgroups.limited_files == {pid_of(container)}


async def test_update_below_what_is_open_is_refused_and_the_former_limit_stays(
    harness: NodeHarness,
) -> None:
    container = await created(harness, "100")
    harness.kernel.cgroups.open_files = 70
    with pytest.raises(WrongStateError, match=f"{FILES}.*: 50 is below the number of open files"):
        await update(harness, container, "50")
    assert in_force(harness) == [100]


async def test_update_that_the_runtime_refuses_leaves_the_former_limit(
    harness: NodeHarness,
) -> None:
    container = await created(harness, "100")
    refuse_updates(harness, container)
    with pytest.raises(RuntimeCommandError):
        await update(harness, container, "50")
    assert in_force(harness) == [100]


async def test_update_that_names_no_limit_leaves_it(harness: NodeHarness) -> None:
    container = await created(harness, "100")
    refuse_updates(harness, container)
    with pytest.raises(RuntimeCommandError):
        await harness.containers.update_container_resources(
            container.id, container.config.linux.resources, {}
        )
    assert in_force(harness) == [100]


async def test_update_is_refused_where_no_limit_can_be(harness: NodeHarness) -> None:
    harness.kernel.cgroups.lack_of_files_limits = "no controller"
    other = harness.restarted()
    container = await other.create(await other.run_pod())
    with pytest.raises(InvalidArgumentError, match=f"{FILES}.*no controller"):
        await update(other, container, "50")
    await update(other, container, "-1")


async def test_exited_container_has_nothing_left_to_limit(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    await harness.containers.stop_container(container.id, 0)
    await update(harness, container, "50")
    assert in_force(harness) == []


# --- execs -------------------------------------------------------------------------------------------------------


async def test_exec_is_brought_under_the_limit_once_it_runs(tmp_path: Path) -> None:
    async with exec_node(tmp_path) as node:
        assert (await node.run("true")).exit_code == 0
        [relative_dir] = node.cgroups.gathered
        assert relative_dir.endswith(node.container.id)


async def test_exec_with_more_files_than_are_left_is_killed_and_said(tmp_path: Path) -> None:
    async with exec_node(tmp_path) as node:
        node.cgroups.refuses = True
        with pytest.raises(ResourceExhaustedError, match="more files are open"):
            await node.run("sleep", "3600")
        assert list(node.exec_dir.iterdir()) == []


async def test_exec_costs_nothing_where_no_limit_can_be(tmp_path: Path) -> None:
    async with exec_node(tmp_path) as node:
        node.cgroups.lack_of_files_limits = "no controller"
        await node.run("true")
        assert node.cgroups.gathered == []
