"""From layers and a spec to a created process, a bounded number at a time."""

from __future__ import annotations

import asyncio
import errno
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CriShimError, DeadlineError, MonitorError, ResourceExhaustedError
from cri_shim.host.cgroups.placement import CgroupPath
from cri_shim.host.pidfd import start_time_ticks
from cri_shim.host.process import Reaper
from cri_shim.rollback import Rollback
from cri_shim.sandbox.launch import Launch
from cri_shim.sandbox.store.model import Process
from cri_shim.sandbox.store.processes import read_top_process
from tests.fakes.clock import turn_over, until
from tests.fakes.kernel import FakeProcess
from tests.fakes.task_shim import shim_handler

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.oci.spec.inputs import Spec
    from cri_shim.sandbox.launch import Created
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio


def a_launch(harness: NodeHarness, letter: str = "c") -> Launch:
    object_id = letter * 64
    paths = harness.paths.container(object_id)
    paths.root_dir.mkdir()
    return Launch(
        object_id=object_id,
        pod_id="p" * 64,
        tenant="namespace n",
        paths=paths,
        runtime=harness.runtime,
        cgroup_path=CgroupPath(f"/pods/{object_id}", f"pods/{object_id}"),
        layers=("top", "base"),
    )


def a_spec(launch: Launch) -> Spec:
    return {"process": {"args": ["sh"]}, "linux": {"cgroupsPath": launch.cgroup_path.spec_path}}


async def launch_it(harness: NodeHarness, launch: Launch) -> Created:
    async with Rollback("thing") as rollback:
        await harness.launcher.mount_rootfs(launch, rollback)
        created = await harness.launcher.create(launch, a_spec(launch), rollback)
        rollback.commit()
    return created


async def test_a_launch_mounts_writes_the_bundle_and_names_both_processes(
    harness: NodeHarness,
) -> None:
    launch = a_launch(harness)
    created = await launch_it(harness, launch)
    assert harness.kernel.mounts == {launch.paths.rootfs_dir}
    assert json.loads(launch.paths.spec_file.read_bytes())["process"]["args"] == ["sh"]
    assert harness.kernel.process_entry(created.process.pid) is not None
    assert read_top_process(launch.paths) == created.monitor


async def test_its_users_reach_the_root_file_system_and_others_reach_nothing(
    harness: NodeHarness,
) -> None:
    launch = a_launch(harness)
    await launch_it(harness, launch)
    paths = launch.paths
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in (paths.rootfs_dir, paths.upper_dir, paths.work_dir, paths.exec_dir)
    }
    assert modes == {"rootfs": 0o755, "upper": 0o755, "work": 0o700, "exec": 0o700}


async def test_the_monitor_is_noted_before_it_may_create_anything(harness: NodeHarness) -> None:
    launch = a_launch(harness)
    hold = harness.points.hold("monitor.create")
    call = asyncio.ensure_future(launch_it(harness, launch))
    await hold.reached.wait()
    [monitor] = harness.kernel.processes.values()
    assert read_top_process(launch.paths) == Process(monitor.pid, monitor.start_ticks)
    hold.release()
    await call


async def test_a_monitor_that_was_started_early_creates_nothing_before_there_is_a_spec(
    harness: NodeHarness,
) -> None:
    launch = a_launch(harness)
    async with Rollback("thing") as rollback:
        await harness.launcher.mount_rootfs(launch, rollback)
        monitor = await harness.launcher.start_early(launch, rollback)
        assert monitor is not None
        [process] = harness.kernel.processes.values()
        assert read_top_process(launch.paths) == Process(process.pid, process.start_ticks)
        assert not launch.paths.spec_file.exists()
        created = await harness.launcher.create(launch, a_spec(launch), rollback, monitor)
        rollback.commit()
    assert created.monitor == Process(process.pid, process.start_ticks)
    assert len(harness.monitors.requests) == 1


async def test_a_monitor_that_was_started_early_ends_with_what_fails_meanwhile(
    harness: NodeHarness,
) -> None:
    launch = a_launch(harness)

    async def fail_after_its_start() -> None:
        async with Rollback("thing") as rollback:
            await harness.launcher.mount_rootfs(launch, rollback)
            await harness.launcher.start_early(launch, rollback)
            assert len(harness.kernel.processes) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_after_its_start()
    assert harness.kernel.processes == {}
    assert not launch.paths.state_dir.exists()


async def test_no_more_wait_early_than_are_created_at_once(harness: NodeHarness) -> None:
    async with Rollback("things") as rollback:
        early = []
        for letter in "abc":
            launch = a_launch(harness, letter)
            await harness.launcher.mount_rootfs(launch, rollback)
            early.append((launch, await harness.launcher.start_early(launch, rollback)))
        assert [monitor is not None for _, monitor in early] == [True, True, False]
        for launch, monitor in early:
            await harness.launcher.create(launch, a_spec(launch), rollback, monitor)
        assert len(harness.monitors.requests) == 3
        again = a_launch(harness, "d")
        await harness.launcher.mount_rootfs(again, rollback)
        assert await harness.launcher.start_early(again, rollback) is not None
        rollback.commit()


async def test_no_more_are_created_at_once_than_allowed(harness: NodeHarness) -> None:
    hold = harness.points.hold("monitor.spawn", everyone=True)
    calls = [
        asyncio.ensure_future(launch_it(harness, a_launch(harness, letter))) for letter in "abc"
    ]
    await until(lambda: harness.points.passed.count("overlay.mounted") == 3)
    await turn_over()
    assert len(harness.monitors.requests) == 2
    hold.release()
    await asyncio.gather(*calls)
    assert len(harness.monitors.requests) == 3


async def test_a_directory_that_cannot_be_made_is_said(harness: NodeHarness) -> None:
    launch = a_launch(harness)
    launch.paths.upper_dir.write_text("in the way")
    with pytest.raises(CriShimError, match="upper"):
        await launch_it(harness, launch)
    assert harness.kernel.mounts == set()
    assert not launch.paths.state_dir.exists()


@pytest.mark.parametrize("point", ["overlay.mount", "overlay.mounted"])
async def test_a_failing_mount_is_undone_whether_it_took_effect_or_not(
    harness: NodeHarness, point: str
) -> None:
    launch = a_launch(harness)
    harness.points.fail(point, OSError(errno.ENOSPC, "no room"))
    with pytest.raises(ResourceExhaustedError, match="preparing the bundle"):
        await launch_it(harness, launch)
    assert harness.kernel.mounts == set()
    assert not launch.paths.state_dir.exists()


async def test_a_monitor_that_fails_leaves_neither_process_nor_cgroup(harness: NodeHarness) -> None:
    launch = a_launch(harness)
    harness.points.fail("monitor.created", MonitorError("creating", ["conmon"], "was killed", ""))
    with pytest.raises(MonitorError):
        await launch_it(harness, launch)
    await harness.teardown.root_files(launch.paths)
    assert harness.leftovers() == {}


async def test_a_process_that_is_gone_before_it_was_looked_at_is_an_error(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.kernel, "start_time_ticks", lambda _pid: None)
    with pytest.raises(DeadlineError, match="ended before its start"):
        await launch_it(harness, a_launch(harness))


async def run_it(harness: NodeHarness, launch: Launch) -> Process:
    async with Rollback("thing") as rollback:
        await harness.launcher.mount_rootfs(launch, rollback)
        process = await harness.launcher.run(launch, a_spec(launch), rollback)
        rollback.commit()
    return process


async def test_what_is_run_has_no_monitor_and_is_noted_itself(harness: NodeHarness) -> None:
    launch = replace(a_launch(harness), monitored=False)
    process = await run_it(harness, launch)
    assert harness.runtime.containers[launch.object_id].status == "running"
    assert harness.monitors.requests == []
    assert read_top_process(launch.paths) == process
    assert not launch.paths.persist_dir.exists()
    await harness.teardown.process(launch.held)
    assert harness.kernel.processes == {}


@pytest.mark.parametrize("point", ["runtime.run", "runtime.ran"])
async def test_a_run_that_is_given_up_leaves_neither_process_nor_cgroup(
    harness: NodeHarness, point: str
) -> None:
    launch = replace(a_launch(harness), monitored=False)
    hold = harness.points.hold(point)
    call = asyncio.ensure_future(run_it(harness, launch))
    await hold.reached.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await harness.teardown.root_files(launch.paths)
    assert harness.leftovers() == {}


async def test_what_was_run_and_is_gone_before_it_was_looked_at_is_an_error(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.kernel, "start_time_ticks", lambda _pid: None)
    with pytest.raises(DeadlineError, match="ended before its start time was read"):
        await run_it(harness, replace(a_launch(harness), monitored=False))
    assert harness.kernel.processes == {}


async def test_what_was_run_in_another_cgroup_than_its_own_is_ended(harness: NodeHarness) -> None:
    harness.kernel.cgroups.misplaced = "elsewhere"
    with pytest.raises(CriShimError, match="'elsewhere' instead of 'pods/c"):
        await run_it(harness, replace(a_launch(harness), monitored=False))
    assert harness.kernel.processes == {}


async def test_runs_and_creations_share_their_number(harness: NodeHarness) -> None:
    hold = harness.points.hold("monitor.spawn", everyone=True)
    calls = [
        asyncio.ensure_future(launch_it(harness, a_launch(harness, letter))) for letter in "ab"
    ]
    await until(lambda: len(harness.monitors.requests) == 2)
    third = replace(a_launch(harness), monitored=False)
    run = asyncio.ensure_future(run_it(harness, third))
    await until(lambda: harness.points.passed.count("overlay.mounted") == 3)
    await turn_over()
    assert "runtime.run" not in harness.points.passed
    hold.release()
    await asyncio.gather(run, *calls)


async def test_a_process_in_another_cgroup_than_its_own_is_ended(harness: NodeHarness) -> None:
    launch = a_launch(harness)
    harness.kernel.cgroups.misplaced = "elsewhere"
    with pytest.raises(CriShimError, match="'elsewhere' instead of 'pods/c"):
        await launch_it(harness, launch)
    assert harness.kernel.processes == {}
    assert harness.kernel.mounts == set()


async def test_a_process_below_its_cgroup_or_of_a_vm_is_where_it_should_be(
    harness: NodeHarness,
) -> None:
    below = a_launch(harness)
    harness.kernel.cgroups.misplaced = f"{below.cgroup_path.relative_dir}/container"
    await launch_it(harness, below)
    harness.kernel.cgroups.misplaced = "sandboxes"
    await launch_it(harness, replace(a_launch(harness, "d"), runtime=harness.runtimes["kata"]))


async def test_a_shim_creates_what_it_runs_without_a_monitor(
    harness: NodeHarness, short_path: Path
) -> None:
    reaper = Reaper()
    reaper.open()
    try:
        async with shim_handler(short_path, reaper) as handler:
            pid = handler.shim.process.pid
            harness.kernel.processes[pid] = FakeProcess(pid, start_time_ticks(pid) or 0, 1, ())
            launch = a_launch(harness)
            launch = replace(launch, pod_id=launch.object_id, runtime=handler.runtime)
            async with Rollback("pod") as rollback:
                await harness.launcher.mount_rootfs(launch, rollback)
                assert await harness.launcher.start_early(launch, rollback) is None
                created = await harness.launcher.create(launch, a_spec(launch), rollback)
                rollback.commit()
            assert created.process.pid == pid
            assert read_top_process(launch.paths) == created.monitor
            assert harness.monitors.requests == []
            assert handler.shim.verbs == ["start"]
    finally:
        reaper.close()
