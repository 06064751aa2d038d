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
from cri_shim.sandbox.model import ContainerState
from tests.fakes.house import House, container_config
from tests.unit.sandbox.exec_node import exec_node

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.sandbox.store import Container, Sandbox

pytestmark = pytest.mark.asyncio

FILES = "cri-shim.io/files-limit"


async def created(house: House, limit: str, sandbox: Sandbox | None = None) -> Container:
    sandbox = sandbox or await house.run_pod()
    config = container_config()
    config.annotations[FILES] = limit
    container_id = await house.containers.create_container(sandbox.id, config, sandbox.config)
    return house.containers.find(container_id)


def in_force(house: House) -> list[int]:
    return list(house.kernel.cgroups.files_limits.values())


def pid_of(container: Container) -> int:
    assert container.status.process is not None
    return container.status.process.pid


async def test_limit_holds_for_the_process_before_it_is_started(house: House) -> None:
    container = await created(house, "100")
    assert container.state is ContainerState.CREATED
    assert house.kernel.cgroups.files_limits == {
        house.containers.endings.cgroup_dir(container): 100
    }
    assert house.kernel.cgroups.limited_files == {pid_of(container)}
    passed = house.points.passed
    assert passed.index("monitor.created") < passed.index("files.limited")
    await house.containers.start_container(container.id)


@pytest.mark.parametrize("limit", ["0", "-1"])
async def test_no_limit_makes_no_cgroup(house: House, limit: str) -> None:
    await created(house, limit)
    assert "files.limit" not in house.points.passed


async def test_kernel_without_the_controller_refuses_before_anything_is_made(house: House) -> None:
    house.kernel.cgroups.lack_of_files_limits = "this kernel has no such controller"
    other = house.restarted()
    sandbox = await other.run_pod()
    before = other.leftovers()
    with pytest.raises(InvalidArgumentError, match=f"{FILES}.*this kernel has no such controller"):
        await created(other, "100", sandbox)
    assert other.leftovers() == before
    await created(other, "-1", sandbox)


async def test_limit_below_what_the_first_process_needs_is_refused_by_its_name(
    house: House,
) -> None:
    sandbox = await house.run_pod()
    before = house.leftovers()
    with pytest.raises(InvalidArgumentError, match=f"{FILES}.*: 2: too few"):
        await created(house, "2", sandbox)
    assert house.leftovers() == before


@pytest.mark.parametrize("point", ["files.limit", "files.limited"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC])
async def test_limit_that_fails_is_undone_with_its_cgroup(
    house: House, point: str, number: int
) -> None:
    sandbox = await house.run_pod()
    before = house.leftovers()
    house.points.fail(point, OSError(number, "no"))
    with pytest.raises(CriShimError, match="limiting its open files"):
        await created(house, "100", sandbox)
    assert house.leftovers() == before
    assert in_force(house) == []
    house.points.heal()
    await created(house, "100", sandbox)


@pytest.mark.parametrize("point", ["files.limit", "files.limited"])
async def test_a_daemon_that_dies_at_the_limit_leaves_nothing_to_its_successor(
    house: House, point: str
) -> None:
    sandbox = await house.run_pod()
    before = house.leftovers()
    successor = await house.crashed_at(point, created(house, "100", sandbox))
    await successor.recovery.run()
    await successor.settle()
    assert successor.leftovers() == before
    assert in_force(successor) == []


async def test_end_of_a_container_takes_the_cgroup_away(house: House) -> None:
    container = await created(house, "100")
    await house.containers.start_container(container.id)
    await house.containers.stop_container(container.id, 0)
    await house.settle()
    assert in_force(house) == []


# --- updates -----------------------------------------------------------------------------------------------------


def refuse_updates(house: House, container: Container) -> None:
    directory = house.containers.endings.cgroup_dir(container)
    house.kernel.cgroups.stats[directory] = CgroupStats(read_at_ns=1)
    house.runtime.refuses_updates = "no"


async def update(house: House, container: Container, limit: str) -> None:
    resources = container.config.linux.resources
    await house.containers.update_container_resources(container.id, resources, {FILES: limit})


async def test_update_changes_the_limit_and_takes_it_off(house: House) -> None:
    container = await created(house, "100")
    await update(house, container, "50")
    assert in_force(house) == [50]
    await update(house, container, "-1")
    assert in_force(house) == [-1]


async def test_update_limits_a_container_that_had_none(house: House) -> None:
    container = await house.create(await house.run_pod())
    await update(house, container, "-1")
    assert in_force(house) == []
    await update(house, container, "50")
    assert in_force(house) == [50]
    assert house.kernel.cgroups.limited_files == {pid_of(container)}


async def test_update_below_what_is_open_is_refused_and_the_former_limit_stays(
    house: House,
) -> None:
    container = await created(house, "100")
    house.kernel.cgroups.open_files = 70
    with pytest.raises(WrongStateError, match=f"{FILES}.*: 50 is less than are open"):
        await update(house, container, "50")
    assert in_force(house) == [100]


async def test_update_that_the_runtime_refuses_leaves_the_former_limit(house: House) -> None:
    container = await created(house, "100")
    refuse_updates(house, container)
    with pytest.raises(RuntimeCommandError):
        await update(house, container, "50")
    assert in_force(house) == [100]


async def test_update_that_names_no_limit_leaves_it(house: House) -> None:
    container = await created(house, "100")
    refuse_updates(house, container)
    with pytest.raises(RuntimeCommandError):
        await house.containers.update_container_resources(
            container.id, container.config.linux.resources, {}
        )
    assert in_force(house) == [100]


async def test_update_is_refused_where_no_limit_can_be(house: House) -> None:
    house.kernel.cgroups.lack_of_files_limits = "no controller"
    other = house.restarted()
    container = await other.create(await other.run_pod())
    with pytest.raises(InvalidArgumentError, match=f"{FILES}.*no controller"):
        await update(other, container, "50")
    await update(other, container, "-1")


async def test_exited_container_has_nothing_left_to_limit(house: House) -> None:
    container = await house.start(await house.run_pod())
    await house.containers.stop_container(container.id, 0)
    await update(house, container, "50")
    assert in_force(house) == []


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
