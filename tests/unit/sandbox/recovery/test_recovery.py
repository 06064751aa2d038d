"""A new daemon on what the former one left: taken over, undone or set aside, each object on its own."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs

from cri_shim import metrics
from cri_shim.errors import (
    CniPluginError,
    CriShimError,
    DeadlineError,
    ProgramError,
    RuntimeCommandError,
    UnavailableError,
)
from cri_shim.sandbox.recovery import recovery as recovery_module
from cri_shim.sandbox.recovery import unfinished as unfinished_module
from cri_shim.sandbox.store.model import (
    ON_DISK,
    ContainerState,
    Process,
    SandboxState,
    SandboxStatus,
)
from cri_shim.sandbox.store.processes import note_top_process
from tests.fakes.clock import turn_over, until
from tests.fakes.node_harness import pod_config
from tests.fakes.runtime import leave_exit_file
from tests.unit.sandbox.interruptions import fill_disk, outcome_of
from tests.unit.sandbox.records import make_sandbox

if TYPE_CHECKING:
    from cri_shim.sandbox.store.store import Container
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio

SANDBOX_POINTS = (
    *("netns.create", "netns.created", "cni.add", "cni.added", "overlay.mount", "overlay.mounted"),
    *("tmpfs.mount", "tmpfs.mounted", "runtime.run", "runtime.ran"),
)
CONTAINER_POINTS = (
    *("overlay.mount", "overlay.mounted", "accounts.read"),
    *("monitor.spawn", "monitor.create", "monitor.created"),
)


async def recovered(harness: NodeHarness, *, boot_id: str | None = None) -> NodeHarness:
    again = harness.restarted(boot_id)
    await again.recovery.run()
    return again


def pid_of(container: Container) -> int:
    assert container.status.process is not None
    return container.status.process.pid


def counted(kind: str, outcome: str) -> float:
    value = metrics.REGISTRY.get_sample_value(
        "cri_shim_recovered_objects_total", {"kind": kind, "outcome": outcome}
    )
    return value or 0


# --- taken over --------------------------------------------------------------------------------------------------


async def test_an_empty_node_stays_empty(harness: NodeHarness) -> None:
    again = await recovered(harness)
    assert again.leftovers() == {}
    await again.close()


async def test_what_ran_runs_on_untouched(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    running, created = await harness.start(sandbox, "one"), await harness.create(sandbox, "two")
    before, signals = harness.leftovers(), list(harness.kernel.signals)
    adopted = counted("container", "running")
    again = await recovered(harness)
    assert {**again.leftovers(), "watches": 0} == {**before, "watches": 0}
    assert harness.kernel.signals == signals
    assert again.pods.find(sandbox.id).state is SandboxState.READY
    assert again.containers.find(running.id).status == running.status
    assert again.containers.find(created.id).status == created.status
    assert counted("container", "running") == adopted + 2
    await again.close()


async def test_requests_are_shown_after_a_restart_and_not_kept(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    again = await recovered(harness)
    pod_again, taken = again.pods.find(sandbox.id), again.containers.find(container.id)
    for item in (sandbox, container, pod_again, taken):
        assert item.record.config is ON_DISK
    pod_info = await again.pods.verbose_info(pod_again)
    info = await again.containers.verbose_info(taken)
    for shown, name in ((pod_info, "web"), (info, "main")):
        assert json.loads(msgspec.json.encode(shown["config"]))["metadata"]["name"] == name
    await again.close()


async def test_ends_after_the_takeover_are_noticed(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    old = await harness.start(sandbox)
    again = await recovered(harness)
    container = again.containers.find(old.id)
    harness.kernel.end(pid_of(container), 5)
    await until(lambda: container.state is ContainerState.EXITED)
    assert container.status.exit_code == 5
    pause = again.pods.find(sandbox.id)
    assert pause.status.process
    harness.kernel.end(pause.status.process.pid, 0)
    await until(lambda: pause.state is SandboxState.NOT_READY)
    await again.pods.remove_pod_sandbox(sandbox.id)
    assert again.leftovers() == {}
    await again.close()


async def test_a_retry_from_before_the_restart_gets_its_result(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    again = await recovered(harness)
    assert await again.pods.run_pod_sandbox(pod_config(), "") == sandbox.id
    assert (await again.create(again.pods.find(sandbox.id))).id == container.id
    await again.close()


async def test_a_container_without_a_program_fails_its_start_after_a_restart(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    words = 'unable to start container process: exec: "x": permission denied'
    harness.points.fail(
        "monitor.created", RuntimeCommandError("creating", ["runc"], "failed", words)
    )
    old = await harness.create(sandbox)
    harness.points.heal()
    again = await recovered(harness)
    container = again.containers.find(old.id)
    assert container.status == old.status
    with pytest.raises(ProgramError, match="permission denied"):
        await again.containers.start_container(container.id)
    assert (container.status.exit_code, container.status.reason) == (128, "StartError")
    await again.pods.remove_pod_sandbox(sandbox.id)
    assert again.leftovers() == {}
    await again.close()


async def test_a_container_goes_through_its_life_after_a_restart(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    again = await recovered(harness)
    await again.containers.start_container(container.id)
    await again.containers.stop_container(container.id, 10)
    assert again.containers.find(container.id).status.exit_code == 143
    await again.pods.remove_pod_sandbox(sandbox.id)
    assert again.leftovers() == {}
    await again.close()


async def test_objects_come_back_oldest_first(harness: NodeHarness) -> None:
    for number, letter in enumerate("cab"):
        harness.sandboxes.create(
            make_sandbox(
                letter * 64,
                name=letter,
                created_at_ns=number,
                status=SandboxStatus(ready_at_ns=1, stopped_at_ns=2, torn_down=True),
            )
        )
    again = await recovered(harness)
    assert [s.id[0] for s in again.pods.list_pod_sandbox()] == ["c", "a", "b"]
    await again.close()


async def test_a_start_that_was_not_written_down_is_found_out(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await harness.create(await harness.run_pod())
    with monkeypatch.context() as full:
        fill_disk(full, "status.json")
        await harness.containers.start_container(container.id)
    again = await recovered(harness)
    assert again.containers.find(container.id).state is ContainerState.RUNNING
    await again.close()


async def test_an_end_is_noticed_also_where_the_rest_of_the_recovery_failed(
    harness: NodeHarness, impatient: None
) -> None:
    old = await harness.create(await harness.run_pod())
    again = harness.restarted()
    again.points.fail("runtime.state", DeadlineError("runc state hangs"))
    await again.recovery.run()
    again.points.heal()
    container = again.containers.find(old.id)
    harness.kernel.end(pid_of(container), 5)
    await until(lambda: container.state is ContainerState.EXITED)
    assert container.status.exit_code == 5
    await again.close()


async def test_a_container_that_ends_while_it_is_looked_at_stays_ended(
    harness: NodeHarness,
) -> None:
    old = await harness.create(await harness.run_pod())
    await harness.runtime.start(old.id, Path("/nonexistent"))  # not written down
    again = harness.restarted()
    again.points.fail("runtime.delete", OSError(errno.EIO, "disk"))  # runc calls it running still
    hold = again.points.hold("runtime.state")
    failed = counted("container", "failed")
    run = asyncio.ensure_future(again.recovery.run())
    await hold.reached.wait()
    container = again.containers.find(old.id)
    harness.kernel.end(pid_of(container), 5)
    await until(lambda: container.state is ContainerState.EXITED)
    hold.release()
    await run
    assert (container.state, container.status.exit_code) == (ContainerState.EXITED, 5)
    assert counted("container", "failed") == failed
    again.points.heal()
    await again.close()


# --- ended meanwhile ---------------------------------------------------------------------------------------------


async def test_what_ended_meanwhile_has_its_exact_code_and_time(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    old = await harness.start(sandbox)
    harness.exits.close()
    harness.kernel.end(pid_of(old), 42)
    exit_file = harness.paths.exits_dir / old.id
    os.utime(exit_file, ns=(1, old.status.started_at_ns + 777))
    again = await recovered(harness)
    container = again.containers.find(old.id)
    assert (container.status.exit_code, container.status.reason) == (42, "Error")
    assert container.status.finished_at_ns == old.status.started_at_ns + 777
    await until(lambda: container.status.torn_down)
    assert exit_file.exists()
    await again.pods.remove_pod_sandbox(sandbox.id)
    assert again.leftovers() == {}
    await again.close()


async def test_an_exit_that_could_not_be_written_down_is_found_again(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await harness.start(await harness.run_pod())
    with monkeypatch.context() as full:
        fill_disk(full, "status.json")
        harness.kernel.end(pid_of(old), 3)
        await until(lambda: old.state is ContainerState.EXITED)
        await harness.settle()
    assert old.unsaved
    again = await recovered(harness)
    status = again.containers.find(old.id).status
    assert (status.exit_code, status.reason) == (3, "Error")
    assert status.finished_at_ns == old.status.finished_at_ns
    await until(lambda: again.containers.find(old.id).status.torn_down)
    written = json.loads(again.paths.container(old.id).status_file.read_bytes())
    assert (written["exit_code"], written["finished_at_ns"]) == (3, status.finished_at_ns)
    await again.close()


async def test_an_exit_file_that_is_about_to_come_is_waited_for(harness: NodeHarness) -> None:
    old = await harness.start(await harness.run_pod())
    harness.exits.close()
    harness.monitors.write_exit_files = False
    harness.kernel.end(pid_of(old), 0)
    again = harness.restarted()
    run = asyncio.ensure_future(again.recovery.run())
    await turn_over()
    leave_exit_file(harness.paths.exits_dir, old.id, 9)
    await run
    assert again.containers.find(old.id).status.exit_code == 9
    await again.close()


async def test_a_monitor_that_is_slow_to_report_is_no_dead_one(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "EXIT_FILE_S", 0)
    old = await harness.start(await harness.run_pod())
    harness.exits.close()
    harness.monitors.write_exit_files = False
    harness.kernel.end(pid_of(old), 0)
    again = await recovered(harness)
    container = again.containers.find(old.id)
    assert container.state is ContainerState.RUNNING
    leave_exit_file(harness.paths.exits_dir, old.id, 9)
    await until(lambda: container.state is ContainerState.EXITED)
    assert container.status.exit_code == 9
    await again.close()


@pytest.mark.parametrize("effect", ["cgroup.kill", "cgroup.remove"])
@pytest.mark.parametrize("monitor_died", [True, False])
async def test_what_is_still_held_by_what_ended_is_torn_down_later_and_holds_nobody_up(
    harness: NodeHarness, effect: str, *, monitor_died: bool
) -> None:
    old = await harness.start(await harness.run_pod())
    harness.exits.close()
    assert old.status.monitor
    if monitor_died:
        harness.kernel.end(old.status.monitor.pid, 137)
    harness.kernel.end(pid_of(old), 3)
    again = harness.restarted()
    again.points.fail(effect, CriShimError("busy"))
    await asyncio.wait_for(again.recovery.run(), 2)
    container = again.containers.find(old.id)
    await until(lambda: again.points.passed.count(effect) > 1)
    assert not container.status.torn_down
    again.points.heal()
    await until(lambda: container.status.torn_down)
    expected = (137, "MonitorDied") if monitor_died else (3, "Error")
    assert (container.status.exit_code, container.status.reason) == expected
    await again.close()


async def test_what_ended_with_its_monitor_is_reported_killed(harness: NodeHarness) -> None:
    old = await harness.start(await harness.run_pod())
    harness.exits.close()
    assert old.status.monitor
    harness.kernel.end(old.status.monitor.pid, 137)
    harness.kernel.end(pid_of(old), 137)
    again = await recovered(harness)
    container = again.containers.find(old.id)
    await until(lambda: container.state is ContainerState.EXITED)
    assert (container.status.exit_code, container.status.reason) == (137, "MonitorDied")
    await again.close()


async def test_what_runs_without_its_monitor_is_killed(harness: NodeHarness) -> None:
    old = await harness.start(await harness.run_pod())
    harness.exits.close()
    assert old.status.monitor
    harness.kernel.end(old.status.monitor.pid, 137)
    again = await recovered(harness)
    container = again.containers.find(old.id)
    await until(lambda: container.state is ContainerState.EXITED)
    assert container.status.reason == "MonitorDied"
    assert pid_of(old) not in harness.kernel.processes
    await again.close()


async def test_a_later_process_of_the_same_number_is_not_taken_over(harness: NodeHarness) -> None:
    old = await harness.start(await harness.run_pod())
    harness.exits.close()
    harness.kernel.end(pid_of(old), 3)
    stranger = harness.kernel.spawn(("stranger",))
    harness.kernel.processes[pid_of(old)] = stranger
    stranger.pid = pid_of(old)
    again = await recovered(harness)
    assert again.containers.find(old.id).status.exit_code == 3
    assert stranger in harness.kernel.processes.values()
    await again.close()


async def test_a_pod_of_before_whose_pause_process_has_a_monitor_goes_on_and_goes_whole(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    assert sandbox.status.process
    pause = harness.kernel.processes[sandbox.status.process.pid]
    monitor = harness.kernel.spawn(("conmon", "--cid", sandbox.id))
    pause.parent = monitor.pid
    paths = harness.paths.sandbox(sandbox.id)
    named = Process(monitor.pid, monitor.start_ticks)
    note_top_process(paths, named)
    paths.persist_dir.mkdir()
    status = json.loads(paths.status_file.read_bytes())
    paths.status_file.write_text(json.dumps({**status, "monitor": msgspec.to_builtins(named)}))
    again = await recovered(harness)
    assert again.pods.find(sandbox.id).state is SandboxState.READY
    await again.pods.stop_pod_sandbox(sandbox.id)
    assert harness.kernel.processes == {}
    await again.pods.remove_pod_sandbox(sandbox.id)
    assert again.leftovers() == {}
    await again.close()


async def test_a_pod_whose_pause_process_ended_is_not_ready(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    harness.exits.close()
    assert sandbox.status.process
    harness.kernel.end(sandbox.status.process.pid, 137)
    again = await recovered(harness)
    found = again.pods.find(sandbox.id)
    assert found.state is SandboxState.NOT_READY
    assert "pause container ended" in found.status.reason
    await again.close()


async def test_an_exited_container_is_kept_and_what_it_still_held_torn_down(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    harness.points.fail("runtime.delete", OSError(5, "disk"))
    harness.kernel.end(pid_of(container), 0)
    await until(lambda: "runtime.delete" in harness.points.passed)
    await harness.background.close(0)
    assert (container.state, container.status.torn_down) == (ContainerState.EXITED, False)
    harness.points.heal()
    again = await recovered(harness)
    found = again.containers.find(container.id)
    assert found.ended.is_set()
    await until(lambda: found.status.torn_down)
    assert container.id not in harness.runtime.containers
    await again.close()


async def test_a_stopped_pod_is_kept_as_it_was(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await harness.pods.stop_pod_sandbox(sandbox.id)
    again = await recovered(harness)
    assert again.pods.find(sandbox.id).status == sandbox.status
    await again.close()


# --- after a reboot ----------------------------------------------------------------------------------------------


async def test_after_a_reboot_everything_has_ended_and_can_be_removed(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    one, two = await harness.start(sandbox, "one"), await harness.create(sandbox, "two")
    again = await recovered(harness, boot_id="next-boot")
    assert again.pods.find(sandbox.id).state is SandboxState.NOT_READY
    assert "rebooted" in again.pods.find(sandbox.id).status.reason
    for container_id in (one.id, two.id):
        status = again.containers.find(container_id).status
        assert (status.exit_code, status.reason) == (255, "Unknown")
    await again.pods.remove_pod_sandbox(sandbox.id)
    assert again.leftovers() == {}
    assert again.cni.deleted[-1].netns == ""
    await again.close()


async def test_pods_of_before_a_reboot_are_taken_off_their_networks_unasked(
    harness: NodeHarness,
) -> None:
    pods = [await harness.run_pod(name) for name in ("one", "two", "three")]
    again = await recovered(harness, boot_id="another")
    assert {s.state for s in again.pods.list_pod_sandbox()} == {SandboxState.NOT_READY}
    await until(lambda: again.cni.attached == {})
    await until(lambda: all(again.pods.find(pod.id).status.torn_down for pod in pods))
    await again.close()


async def test_an_exit_that_was_written_before_the_reboot_counts(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    harness.exits.close()
    harness.kernel.end(pid_of(container), 7)
    again = await recovered(harness, boot_id="next-boot")
    assert again.containers.find(container.id).status.exit_code == 7
    await again.close()


async def test_after_a_reboot_no_process_number_is_believed(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    harness.exits.close()
    process, monitor = container.status.process, container.status.monitor
    again = harness.restarted("next-boot")
    assert process
    assert monitor
    stranger = harness.kernel.spawn(("innocent",), start_ticks=process.start_ticks)
    harness.kernel.processes[process.pid] = stranger
    await again.recovery.run()
    assert stranger in harness.kernel.processes.values()
    assert again.containers.find(container.id).state is ContainerState.EXITED
    await again.close()


# --- never acknowledged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", SANDBOX_POINTS)
async def test_a_sandbox_that_was_being_made_is_undone(harness: NodeHarness, point: str) -> None:
    again = await harness.crashed_at(point, harness.pods.run_pod_sandbox(pod_config(), ""))
    await again.recovery.run()
    await again.settle()
    assert again.leftovers() == {}
    await again.run_pod()
    await again.close()


@pytest.mark.parametrize("point", CONTAINER_POINTS)
async def test_a_container_that_was_being_made_is_undone(harness: NodeHarness, point: str) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    again = await harness.crashed_at(point, harness.create(sandbox))
    await again.recovery.run()
    await again.settle()
    assert {**again.leftovers(), "watches": 0} == {**before, "watches": 0}
    await again.create(again.pods.find(sandbox.id))
    await again.close()


@pytest.mark.parametrize(
    ("effect", "error"),
    [
        ("cgroup.kill", CriShimError("busy")),
        ("unmount", OSError(errno.EBUSY, "busy")),
        ("unmount", TimeoutError()),
        ("remove_tree state", OSError(errno.EIO, "disk")),
        ("remove_tree root", OSError(errno.EIO, "disk")),
        ("netns.remove", ValueError("a mistake in the program")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_a_sandbox_whose_undoing_fails_is_listed_and_removed_later(
    harness: NodeHarness, effect: str, error: Exception
) -> None:
    again = await harness.crashed_at("runtime.ran", harness.pods.run_pod_sandbox(pod_config(), ""))
    again.points.fail(effect, error)
    with capture_logs() as logs:
        await again.recovery.run()
    [sandbox] = again.pods.list_pod_sandbox()
    assert sandbox.state is SandboxState.NOT_READY
    assert "undo failed" in sandbox.status.reason
    assert (str(error) or repr(error)) in [line.get("error") for line in logs]
    again.points.heal()
    await again.pods.remove_pod_sandbox(sandbox.id)
    assert again.leftovers() == {}
    await again.run_pod()
    await again.close()


@pytest.mark.parametrize(
    ("effect", "error"),
    [
        ("cgroup.remove", CriShimError("busy")),
        ("unmount", OSError(errno.EBUSY, "busy")),
        ("remove_tree root", OSError(errno.EIO, "disk")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("whole_pod", [True, False])
async def test_a_container_whose_undoing_fails_is_listed_and_removed_later(
    harness: NodeHarness, effect: str, error: Exception, *, whole_pod: bool
) -> None:
    sandbox = await harness.run_pod()
    again = await harness.crashed_at("monitor.created", harness.create(sandbox))
    again.points.fail(effect, error)
    await again.recovery.run()
    [container] = again.containers.list_containers()
    assert (container.state, container.ended.is_set()) == (ContainerState.EXITED, True)
    assert container.status.reason == "CreateContainerError"
    assert "undo failed" in container.status.message
    again.points.heal()
    if whole_pod:
        await again.pods.remove_pod_sandbox(sandbox.id)
        assert again.leftovers() == {}
    else:
        await again.containers.remove_container(container.id)
        await again.create(again.pods.find(sandbox.id))
    await again.close()


async def test_a_start_that_a_stopping_daemon_cut_short_is_found_out_by_the_next(
    harness: NodeHarness,
) -> None:
    container = await harness.create(await harness.run_pod())
    hold = harness.points.hold("runtime.started")
    call = asyncio.ensure_future(outcome_of(harness.containers.start_container(container.id)))
    await hold.reached.wait()
    await harness.containers.close(0)
    await call
    assert container.state is ContainerState.CREATED
    again = await recovered(harness)
    assert again.containers.find(container.id).state is ContainerState.RUNNING
    await again.close()


async def test_a_removal_that_was_cut_short_is_completed(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await harness.start(sandbox)
    again = await harness.crashed_at(
        "remove_tree root", outcome_of(harness.pods.remove_pod_sandbox(sandbox.id))
    )
    await again.recovery.run()
    # The container's record was gone, the pod's not yet.
    assert [c.id for c in again.stored] == []
    await again.pods.remove_pod_sandbox(sandbox.id)
    assert again.leftovers() == {}
    await again.close()


# --- execs of the former daemon ----------------------------------------------------------------------------------


async def test_commands_of_the_former_daemon_are_killed(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    exec_dir = harness.paths.container(container.id).exec_dir
    cgroup = harness.cgroup_paths.directory_of(container)
    [pause] = harness.pods.list_pod_sandbox()
    assert container.status.monitor
    assert pause.status.process
    command = harness.kernel.spawn(("probe",), cgroup=cgroup)
    stranger = harness.kernel.spawn(("stranger",))
    # Numbers that were given again meanwhile, to what the container itself has started.
    own = [
        harness.kernel.spawn(("own",), cgroup=cgroup, parent=parent)
        for parent in (pid_of(container), container.status.monitor.pid, pause.status.process.pid)
    ]
    for process in (command, stranger, harness.kernel.processes[pid_of(container)], *own):
        (exec_dir / f"{process.pid}.pid").write_text(str(process.pid))
    (exec_dir / "torn.pid").write_text("")
    (exec_dir / "1.json").write_text("{}")
    again = await recovered(harness)
    alive = set(harness.kernel.processes)
    assert command.pid not in alive
    assert {stranger.pid, pid_of(container), *(process.pid for process in own)} <= alive
    assert list(exec_dir.iterdir()) == []
    await again.close()


# --- what can't be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["torn", "newer"])
async def test_a_damaged_sandbox_is_set_aside_with_all_it_held(
    harness: NodeHarness, damage: str
) -> None:
    whole, hurt = await harness.run_pod("whole"), await harness.run_pod("hurt")
    before = harness.leftovers()
    record = harness.paths.sandbox(hurt.id).record_file
    if damage == "torn":
        record.write_bytes(record.read_bytes()[:100])
    else:
        record.write_text(json.dumps({**json.loads(record.read_bytes()), "format": 99}))
    again = await recovered(harness)
    assert [s.id for s in again.pods.list_pod_sandbox()] == [whole.id]
    left = again.leftovers()
    assert len(left["processes"]) == len(before["processes"]) // 2  # type: ignore[arg-type]
    for kind in ("mounts", "namespaces", "cgroups", "attachments", "runtime", "files"):
        assert hurt.id[:32] not in str(left[kind]), kind
        assert whole.id[:32] in str(left[kind]), kind
    [kept] = (harness.paths.root / "damaged").iterdir()
    assert kept.name.startswith(hurt.id)
    assert (kept / "record.json").exists()
    await again.run_pod("hurt")
    await again.close()


async def test_what_could_not_be_taken_from_a_damaged_sandbox_is_taken_the_next_time(
    harness: NodeHarness,
) -> None:
    hurt = await harness.run_pod()
    harness.paths.sandbox(hurt.id).record_file.write_text("{")
    again = harness.restarted()
    again.points.fail("netns.remove", OSError(errno.EBUSY, "busy"))
    await again.recovery.run()
    assert again.kernel.namespaces
    again.points.heal()
    third = await recovered(again)
    assert third.leftovers() == {}
    await third.close()


@pytest.mark.parametrize("damaged", [True, False])
async def test_a_detachment_that_fails_in_recovery_is_pending_and_survives_the_next_start(
    harness: NodeHarness, *, damaged: bool
) -> None:
    if damaged:
        hurt = await harness.run_pod()
        harness.paths.sandbox(hurt.id).record_file.write_text("{")
        again = harness.restarted()
    else:
        again = await harness.crashed_at(
            "runtime.ran", harness.pods.run_pod_sandbox(pod_config(), "")
        )
    again.points.fail("cni.del", CniPluginError("bridge", "DEL", "busy"))
    await again.recovery.run()
    assert again.pods.list_pod_sandbox() == []
    assert sorted(again.leftovers()) == ["attachments", "files", "namespaces", "pending_deletes"]
    again.points.heal()
    third = await recovered(again)
    assert [pending.error for pending in third.pending_deletes] == ["CNI plugin bridge: DEL: busy"]
    await third.reconciler.retry_due()
    assert third.leftovers() == {}
    await third.close()


async def test_a_damaged_container_is_set_aside_and_its_pod_goes_on(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    container = await harness.start(sandbox)
    harness.paths.container(container.id).status_file.write_bytes(b"")
    again = await recovered(harness)
    assert again.containers.list_containers() == []
    assert {**again.leftovers(), "watches": 0} == {**before, "watches": 0}
    await again.close()


async def test_an_object_without_a_record_was_being_removed(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    harness.paths.container(container.id).record_file.unlink()
    again = await recovered(harness)
    assert again.containers.list_containers() == []
    assert not harness.paths.container(container.id).root_dir.exists()
    assert not (harness.paths.root / "damaged").exists()
    await again.close()


async def test_an_orphan_without_any_record_is_removed(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    root_dir = harness.paths.container(container.id).root_dir
    shutil.rmtree(root_dir)
    (harness.paths.state / "containers" / "not-an-id").mkdir()
    again = await recovered(harness)
    assert pid_of(container) not in harness.kernel.processes
    assert not harness.paths.container(container.id).state_dir.exists()
    assert (harness.paths.state / "containers" / "not-an-id").is_dir()
    assert container.id not in str(again.leftovers())
    await again.close()


async def test_a_node_without_a_state_directory_is_no_error(harness: NodeHarness) -> None:
    (harness.paths.state / "sandboxes").rmdir()
    again = harness.restarted()
    (harness.paths.state / "sandboxes").rmdir()
    await again.recovery.run()
    await again.close()


async def test_a_container_without_its_sandbox_is_removed(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    harness.paths.sandbox(sandbox.id).record_file.unlink()
    again = await recovered(harness)
    assert again.pods.list_pod_sandbox() == []
    assert again.containers.list_containers() == []
    assert container.id not in str(again.leftovers())
    assert again.leftovers() == {}
    await again.close()


# --- each on its own ---------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for no object longer than this."""
    monkeypatch.setattr(unfinished_module, "PATIENCE_S", 0.02)


async def test_an_object_that_hangs_holds_up_neither_the_others_nor_readiness(
    harness: NodeHarness, impatient: None
) -> None:
    unfinished = make_sandbox("0" * 64, name="unfinished", created_at_ns=0)
    harness.sandboxes.create(unfinished)
    fine = await harness.run_pod("fine")
    again = harness.restarted()
    hold = again.points.hold("cgroup.kill", everyone=True)
    await again.recovery.run()
    assert again.pods.find(fine.id).state is SandboxState.READY
    # Both are listed, the one as what it is.
    states = {s.id: s.state for s in again.pods.list_pod_sandbox()}
    assert states == {fine.id: SandboxState.READY, unfinished.id: SandboxState.NOT_READY}
    reason = again.pods.find(unfinished.id).status.reason
    assert "still being recovered: " in reason
    # Its files say what it is, for the next daemon.
    assert not json.loads(harness.paths.sandbox(unfinished.id).status_file.read_bytes())[
        "stopped_at_ns"
    ]
    await again.start(again.pods.find(fine.id))
    hold.release()
    await until(lambda: again.sandboxes.get(unfinished.id) is None)
    await again.close()


async def test_objects_that_hang_are_waited_for_side_by_side_and_give_their_turn_to_the_next(
    harness: NodeHarness, impatient: None
) -> None:
    for number in range(2 * unfinished_module.AT_ONCE):
        letters = f"{number:064x}"
        harness.sandboxes.create(make_sandbox(letters, name=letters, created_at_ns=number))
    damaged = make_sandbox("d" * 64, name="damaged", created_at_ns=99)
    harness.sandboxes.create(damaged)
    harness.paths.sandbox(damaged.id).record_file.write_text("{")
    again = harness.restarted()
    hold = again.points.hold("cgroup.kill", everyone=True)
    await again.recovery.run()
    assert len(again.pods.list_pod_sandbox()) == 2 * unfinished_module.AT_ONCE
    hold.release()
    await until(lambda: again.pods.list_pod_sandbox() == [])
    await until(lambda: again.leftovers() == {})
    await again.close()


async def test_readiness_has_a_limit_also_where_very_many_hang(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished_module, "ALL_PATIENCE_S", 0.02)
    monkeypatch.setattr(unfinished_module, "AT_ONCE", 1)
    for letter in "abc":
        harness.sandboxes.create(make_sandbox(letter * 64, name=letter, created_at_ns=1))
    again = harness.restarted()
    hold = again.points.hold("cgroup.kill", everyone=True)
    await again.recovery.run()
    reasons = [s.status.reason for s in again.pods.list_pod_sandbox()]
    assert len(reasons) == 3
    assert reasons[2].endswith("still being recovered: waiting for others")
    hold.release()
    await until(lambda: again.pods.list_pod_sandbox() == [])
    await again.close()


async def test_stop_and_remove_of_an_object_that_is_still_undone_join_the_undoing(
    harness: NodeHarness, impatient: None
) -> None:
    unfinished = make_sandbox("0" * 64, name="unfinished", created_at_ns=0)
    harness.sandboxes.create(unfinished)
    again = harness.restarted()
    hold = again.points.hold("cgroup.kill", everyone=True)
    await again.recovery.run()
    calls = [
        asyncio.ensure_future(call(unfinished.id))
        for call in (again.pods.stop_pod_sandbox, again.pods.remove_pod_sandbox)
    ]
    await turn_over()
    assert not any(call.done() for call in calls)
    hold.release()
    await asyncio.gather(*calls)
    assert again.leftovers() == {}
    await again.close()


async def test_whoever_wants_the_name_of_what_is_still_undone_is_told_to_come_again(
    harness: NodeHarness, impatient: None
) -> None:
    again = await harness.crashed_at("runtime.ran", harness.pods.run_pod_sandbox(pod_config(), ""))
    hold = again.points.hold("cgroup.kill", everyone=True)
    await again.recovery.run()
    with pytest.raises(UnavailableError, match=r"being removed \(.* for 0\.\d s\): retry"):
        await again.run_pod()
    hold.release()
    await until(lambda: again.pods.list_pod_sandbox() == [])
    await again.run_pod()
    await again.close()


async def test_a_container_that_is_still_undone_is_listed_as_exited_until_it_is_gone(
    harness: NodeHarness, impatient: None
) -> None:
    sandbox = await harness.run_pod()
    again = await harness.crashed_at("monitor.created", harness.create(sandbox))
    hold = again.points.hold("cgroup.kill", everyone=True)
    await again.recovery.run()
    [container] = again.containers.list_containers()
    assert (container.state, container.status.reason) == (
        ContainerState.EXITED,
        "CreateContainerError",
    )
    assert "still being recovered: " in container.status.message
    with pytest.raises(UnavailableError, match="retry, or use a higher attempt"):
        await again.create(again.pods.find(sandbox.id))
    hold.release()
    await until(lambda: again.containers.list_containers() == [])
    await again.create(again.pods.find(sandbox.id))
    await again.close()


async def test_a_runtime_that_hangs_is_asked_until_it_says_whether_the_container_was_started(
    harness: NodeHarness, impatient: None
) -> None:
    old = await harness.create(await harness.run_pod())
    await harness.runtime.start(old.id, Path("/nonexistent"))  # not written down
    again = harness.restarted()
    hold = again.points.hold("runtime.state")
    await again.recovery.run()
    container = again.containers.find(old.id)
    assert container.state is ContainerState.CREATED
    again.points.fail("runtime.state", DeadlineError("runc state hangs"))
    hold.release()
    await turn_over()
    again.points.heal()
    await until(lambda: container.state is ContainerState.RUNNING)
    await again.close()


async def test_an_exec_of_the_new_daemon_is_no_leftover(
    harness: NodeHarness, impatient: None
) -> None:
    container = await harness.create(await harness.run_pod())
    exec_dir = harness.paths.container(container.id).exec_dir
    cgroup = harness.cgroup_paths.directory_of(container)
    old = harness.kernel.spawn(("old probe",), cgroup=cgroup)
    (exec_dir / "old.pid").write_text(str(old.pid))
    again = harness.restarted()
    hold = again.points.hold("runtime.state")
    run = asyncio.ensure_future(again.recovery.run())
    await hold.reached.wait()
    new = again.kernel.spawn(("new probe",), cgroup=cgroup)
    (exec_dir / "new.pid").write_text(str(new.pid))
    hold.release()
    await run
    assert (old.pid in again.kernel.processes, new.pid in again.kernel.processes) == (False, True)
    assert [file.name for file in exec_dir.iterdir()] == ["new.pid"]
    await again.close()


@pytest.mark.parametrize("damaged", [True, False])
async def test_no_recovery_waits_for_a_plugin_of_the_former_daemon(
    harness: NodeHarness, *, damaged: bool
) -> None:
    if damaged:
        pod = await harness.run_pod()
        harness.paths.sandbox(pod.id).record_file.write_text("{")
        again = harness.restarted()
    else:
        again = await harness.crashed_at(
            "cni.added", harness.pods.run_pod_sandbox(pod_config(), "")
        )
    [(_, pod_id, _)] = again.cni.attached
    again.cni.leftovers.found.add(pod_id)
    await again.recovery.run()
    assert again.pods.list_pod_sandbox() == []
    assert [pending.container_id for pending in again.pending_deletes] == [pod_id]
    await again.run_pod()
    # It finishes after the pod is gone; then what it has made goes as well.
    again.cni.leftovers.found.clear()
    await again.reconciler.retry_due()
    assert [pending.container_id for pending in again.pending_deletes] == []
    assert pod_id not in {container_id for _, container_id, _ in again.cni.attached}
    await again.close()
