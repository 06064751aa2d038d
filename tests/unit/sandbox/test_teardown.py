"""The undo of each effect: complete, repeatable, and without trust in what a runtime says."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cri_shim.errors import CriShimError, DeadlineError, RuntimeCommandError
from cri_shim.sandbox.store.model import Process
from cri_shim.sandbox.store.processes import Held, note_top_process, read_top_process, running
from cri_shim.sandbox.teardown import Attempts
from tests.fakes.runtime import Entry, leave_exit_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.paths import ObjectPaths
    from tests.fakes.kernel import FakeProcess
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio

ID = "c" * 64
POD_ID = "a" * 64
CGROUP = f"pods/{ID}"


def begin(
    harness: NodeHarness, *, noted: bool = True
) -> tuple[ObjectPaths, FakeProcess, FakeProcess]:
    """A monitor with a container below it, as a creation leaves them."""
    paths = harness.paths.container(ID)
    paths.root_dir.mkdir()
    paths.record_file.touch()
    paths.rootfs_dir.mkdir(parents=True)
    paths.persist_dir.mkdir()
    harness.kernel.mounts.add(paths.rootfs_dir)
    monitor = harness.kernel.spawn(("conmon", "--cid", ID))
    process = harness.kernel.spawn(("sh",), parent=monitor.pid, cgroup=CGROUP)
    harness.runtime.containers[ID] = Entry("running", process)
    if noted:
        note_top_process(paths, Process(monitor.pid, monitor.start_ticks))
    return paths, monitor, process


def held(paths: ObjectPaths, handler: str = "runc") -> Held:
    """The container, as everybody names it who takes it away."""
    return Held(ID, POD_ID, handler, CGROUP, paths)


async def tear_down_all(harness: NodeHarness, paths: ObjectPaths) -> None:
    await harness.teardown.process(held(paths, "runc"))
    await harness.teardown.state_files(paths)
    await harness.teardown.root_files(paths)


async def test_a_running_container_is_taken_away_whole(harness: NodeHarness) -> None:
    paths, _, _ = begin(harness)
    leave_exit_file(harness.paths.exits_dir, ID, 0)
    await tear_down_all(harness, paths)
    assert harness.leftovers() == {}
    assert harness.monitors.discarded == [ID]


async def test_what_a_monitor_was_writing_when_it_was_killed_goes_too(harness: NodeHarness) -> None:
    paths, _, _ = begin(harness)
    others = harness.paths.exits_dir / f"{'d' * 64}.A1B2C3"
    for file in (harness.paths.exits_dir / f"{ID}.D4E5F6", others):
        file.touch()
    await tear_down_all(harness, paths)
    assert list(harness.paths.exits_dir.iterdir()) == [others]
    others.unlink()


async def test_what_nobody_monitored_is_not_looked_for_among_the_exits_of_others(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await harness.run_pod()
    monkeypatch.setattr(Path, "iterdir", no_look)
    await harness.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.status.torn_down


def no_look(directory: Path) -> Iterator[Path]:
    raise AssertionError(f"{directory} is looked through")


async def test_every_step_succeeds_on_what_is_not_there(harness: NodeHarness) -> None:
    paths = harness.paths.container(ID)
    await tear_down_all(harness, paths)
    await tear_down_all(harness, paths)
    await harness.teardown.mounts(paths)
    await harness.teardown.process_without_record(ID, ["runc"], paths)
    assert harness.leftovers() == {}


async def test_a_monitor_is_stopped_before_its_family_dies_so_that_it_reports_nothing(
    harness: NodeHarness,
) -> None:
    paths, monitor, process = begin(harness)
    await harness.teardown.kill_processes(held(paths))
    assert [pid for pid, _ in harness.kernel.signals] == [process.pid, monitor.pid]
    assert not (harness.paths.exits_dir / ID).exists()


async def test_a_monitor_that_nobody_noted_is_found_by_its_command_line(
    harness: NodeHarness,
) -> None:
    paths, _, _ = begin(harness, noted=False)
    await harness.teardown.kill_processes(held(paths))
    assert harness.kernel.processes == {}


async def test_a_later_process_with_the_monitors_number_is_spared(harness: NodeHarness) -> None:
    paths = harness.paths.container(ID)
    paths.state_dir.mkdir()
    stranger = harness.kernel.spawn(("innocent",))
    note_top_process(paths, Process(stranger.pid, stranger.start_ticks - 1))
    await harness.teardown.kill_processes(held(paths))
    assert stranger.pid in harness.kernel.processes


async def test_what_stays_in_the_cgroup_without_a_monitor_is_killed(harness: NodeHarness) -> None:
    paths = harness.paths.container(ID)
    harness.kernel.spawn(("left behind",), cgroup=CGROUP)
    await harness.teardown.process(held(paths, "runc"))
    assert harness.leftovers() == {}


async def test_processes_that_do_not_die_are_said(harness: NodeHarness) -> None:
    paths, monitor, _ = begin(harness)
    monitor.deaf_to.add(signal.SIGKILL)
    with pytest.raises(DeadlineError, match=f"process {monitor.pid} or its descendants"):
        await harness.teardown.kill_processes(held(paths))


async def test_a_busy_cgroup_is_an_error_and_a_further_call_does_the_rest(
    harness: NodeHarness,
) -> None:
    paths, _, _ = begin(harness)
    harness.points.fail("cgroup.remove", CriShimError("cgroup is busy"))
    with pytest.raises(CriShimError, match="busy"):
        await harness.teardown.process(held(paths, "runc"))
    harness.points.heal()
    await tear_down_all(harness, paths)
    assert harness.leftovers() == {}


async def test_a_runtime_that_refuses_has_its_files_removed_instead(harness: NodeHarness) -> None:
    paths = harness.paths.container(ID)
    state = harness.paths.runtime_root("runc") / ID
    state.mkdir(parents=True)
    harness.points.fail(
        "runtime.delete", RuntimeCommandError("deleting", ["runc"], "failed", "state is damaged")
    )
    await harness.teardown.process(held(paths, "runc"))
    assert not state.exists()


async def test_a_handler_that_left_the_configuration_is_no_obstacle(harness: NodeHarness) -> None:
    """Its kind is not known any more: what lost its monitor goes as well, and all that is named after the object."""
    kept = harness.paths.runtime_root("gone") / f"{ID}_sandbox:{POD_ID}.state"
    kept.mkdir(parents=True)
    harness.kernel.spawn(("qemu", f"sandbox-{ID}"))
    other = harness.kernel.spawn(("qemu", f"sandbox-{POD_ID}"))
    harness.kernel.cgroups.dirs |= {f"pods/kata_{ID}", f"pods/kata_{POD_ID}"}
    await harness.teardown.process(held(harness.paths.container(ID), "gone"))
    assert harness.kernel.cgroups.dirs == {f"pods/kata_{POD_ID}"}
    assert harness.handlers.cleared_of_shims == [("gone", ID)]
    assert list(harness.kernel.processes) == [other.pid]
    assert not kept.exists()


async def test_without_a_record_the_cgroup_is_the_one_its_processes_are_found_in(
    harness: NodeHarness,
) -> None:
    paths, _, _ = begin(harness)
    await harness.teardown.process_without_record(ID, ["runc", "kata"], paths)
    assert harness.kernel.processes == {}
    assert harness.kernel.cgroups.dirs == set()
    assert harness.runtime.containers == {}


async def test_without_a_record_a_cgroup_that_is_not_the_objects_own_stays(
    harness: NodeHarness,
) -> None:
    paths, monitor, _ = begin(harness)
    harness.kernel.spawn(("runc", "create"), parent=monitor.pid, cgroup="system.slice/daemon")
    await harness.teardown.process_without_record(ID, ["runc"], paths)
    assert harness.kernel.cgroups.dirs == {"system.slice/daemon"}


async def test_the_record_goes_before_the_rest(harness: NodeHarness) -> None:
    paths, _, _ = begin(harness)
    harness.points.fail("remove_tree root", OSError(5, "disk"))
    with pytest.raises(OSError, match="disk"):
        await harness.teardown.root_files(paths)
    assert not paths.record_file.exists()
    assert paths.root_dir.exists()


async def test_a_note_that_cannot_be_read_names_nobody(harness: NodeHarness) -> None:
    paths = harness.paths.container(ID)
    paths.state_dir.mkdir()
    assert read_top_process(paths) is None
    note_top_process(paths, Process(12, 34))
    assert read_top_process(paths) == Process(12, 34)
    for garbage in (b"", b"{", b'{"pid": "x"}', b" " * 5000):
        paths.top_process_file.write_bytes(garbage)
        assert read_top_process(paths) is None


async def test_a_process_runs_only_if_it_is_the_very_one(harness: NodeHarness) -> None:
    process = harness.kernel.spawn()
    assert running(harness.host, Process(process.pid, process.start_ticks))
    assert not running(harness.host, Process(process.pid, process.start_ticks + 1))
    assert not running(harness.host, None)
    harness.kernel.end(process.pid)
    assert not running(harness.host, Process(process.pid, process.start_ticks))


async def test_every_step_is_tried_and_the_first_failure_is_raised() -> None:
    tried: list[str] = []

    async def step(name: str, error: Exception | None = None) -> None:
        tried.append(name)
        if error is not None:
            raise error

    attempts = Attempts()
    assert not await attempts.each(
        lambda: step("a", CriShimError("first")), lambda: step("b", OSError("second"))
    )
    assert await attempts.each(lambda: step("c"))
    with capture_logs() as logs, pytest.raises(CriShimError, match="first"):
        attempts.finish(ID)
    assert tried == ["a", "b", "c"]
    assert [(line["id"], line["error"]) for line in logs] == [(ID, "second")]


async def test_without_a_failure_nothing_is_raised() -> None:
    attempts = Attempts()
    assert await attempts.each()
    attempts.finish(ID)
