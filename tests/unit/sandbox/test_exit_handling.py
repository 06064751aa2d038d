"""How containers end: with the right reason, holding nothing any more; stopped with patience, and killed without."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import CriShimError, DeadlineError
from cri_shim.sandbox import exit_handling as exit_handling_module
from cri_shim.sandbox import exits as exits_module
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.store.model import ContainerState, ContainerStatus
from tests.fakes.clock import turn_over, until
from tests.fakes.metrics import sample
from tests.fakes.node_harness import container_config, pod_config
from tests.fakes.runtime import leave_exit_file
from tests.unit.sandbox.interruptions import outcome_of
from tests.unit.sandbox.looking import exited, process_of
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.sandbox.store.store import Container
    from tests.fakes.clock import MovableClock
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio


# --- exits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (3, "Error"), (137, "Error")])
async def test_an_exit_is_shown_with_its_code(harness: NodeHarness, code: int, reason: str) -> None:
    container = await harness.start(await harness.run_pod())
    harness.kernel.end(process_of(harness, container).pid, code)
    await exited(container)
    assert (container.status.exit_code, container.status.reason) == (code, reason)
    assert container.ended.is_set()


async def test_an_exited_container_holds_nothing_but_files(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    container = await harness.start(sandbox)
    harness.kernel.end(process_of(harness, container).pid, 0)
    await exited(container)
    await harness.settle()
    left = harness.leftovers()
    changed = {kind for kind in left if left[kind] != before.get(kind)}
    assert changed == {"containers", "files", "mounts"}


async def test_an_exit_is_written_down_before_anything_that_says_the_same_is_taken_away(
    harness: NodeHarness,
) -> None:
    container = await harness.start(await harness.run_pod())
    hold = harness.points.hold("runtime.delete")
    harness.kernel.end(process_of(harness, container).pid, 3)
    await hold.reached.wait()
    written = json.loads(harness.paths.container(container.id).status_file.read_bytes())
    assert (written["exit_code"], written["finished_at_ns"]) == (3, container.status.finished_at_ns)
    hold.release()
    await harness.settle()


async def test_an_exit_that_no_file_tells_is_written_down_at_once(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    await harness.exit_handling.note_exit(container, Exit(None, 0))
    assert not container.unsaved
    written = json.loads(harness.paths.container(container.id).status_file.read_bytes())
    assert written["reason"] == "MonitorDied"


async def test_the_exit_file_stays_as_long_as_the_container(harness: NodeHarness) -> None:
    # Should the status that was made of it be lost, a new daemon needs it again.
    container = await harness.start(await harness.run_pod())
    harness.kernel.end(process_of(harness, container).pid, 3)
    await exited(container)
    await harness.settle()
    exit_file = harness.paths.exits_dir / container.id
    assert container.status.torn_down
    assert exit_file.read_text() == "3"
    assert harness.monitors.discarded == []
    await harness.containers.remove_container(container.id)
    assert not exit_file.exists()
    assert harness.monitors.discarded == [container.id]


async def test_what_an_exited_container_held_is_torn_down_once_that_is_possible(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    harness.points.fail("cgroup.remove", CriShimError("busy"))
    harness.kernel.end(process_of(harness, container).pid, 3)
    await until(lambda: harness.points.passed.count("cgroup.remove") > 1)
    # The exit is shown meanwhile.
    assert (container.status.exit_code, container.status.torn_down) == (3, False)
    harness.points.heal()
    await until(lambda: container.status.torn_down)
    assert container.id not in harness.runtime.containers
    assert harness.cgroup_paths.directory_of(container) not in harness.kernel.cgroups.dirs


async def test_a_removal_meanwhile_ends_the_teardown(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    container = await harness.start(sandbox)
    harness.points.fail("runtime.delete", OSError(errno.EIO, "disk"))
    harness.kernel.end(process_of(harness, container).pid, 3)
    await until(lambda: "runtime.delete" in harness.points.passed)
    harness.points.heal()
    await harness.containers.remove_container(container.id)
    passed = len(harness.points.passed)
    await harness.settle()
    assert len(harness.points.passed) == passed
    assert harness.leftovers() == before


async def test_a_slow_monitor_is_no_dead_one(harness: NodeHarness, clock: MovableClock) -> None:
    container = await harness.start(await harness.run_pod())
    harness.monitors.write_exit_files = False  # it still writes the log, to a slow disk
    harness.kernel.end(process_of(harness, container).pid, 0)
    await clock.sleep(2 * exits_module.SLOW_MONITOR_S)
    assert container.state is ContainerState.RUNNING
    leave_exit_file(harness.paths.exits_dir, container.id, 0)
    await exited(container)
    assert (container.status.exit_code, container.status.reason) == (0, "Completed")


async def test_the_time_of_the_exit_is_that_of_its_file(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    await harness.exit_handling.note_exit(
        container, Exit(1, container.status.started_at_ns + 12345)
    )
    assert container.status.finished_at_ns == container.status.started_at_ns + 12345


async def test_the_first_exit_stays(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    await harness.exit_handling.note_exit(container, Exit(1, 0))
    status = container.status
    await harness.exit_handling.note_exit(container, Exit(2, 0))
    assert container.status is status


@pytest.mark.parametrize(
    ("code", "kills", "mark", "reason"),
    [
        (137, 1, False, "OOMKilled"),
        (137, 0, True, "Error"),
        (137, None, True, "OOMKilled"),
        (137, None, False, "Error"),
        (1, 1, True, "OOMKilled"),
        (1, 0, True, "Error"),
        (0, 2, False, "OOMKilled"),
        (0, None, True, "OOMKilled"),
        (0, 0, False, "Completed"),
    ],
)
async def test_a_container_that_lost_a_process_for_want_of_memory_says_so_however_it_ended(
    harness: NodeHarness, code: int, kills: int | None, *, mark: bool, reason: str
) -> None:
    container = await harness.start(await harness.run_pod())
    process = process_of(harness, container)
    harness.kernel.cgroups.counts_ooms = kills is not None
    harness.kernel.cgroups.ooms[process.cgroup] = kills or 0
    if mark:
        (harness.paths.container(container.id).persist_dir / "oom").touch()
    before = sample("cri_shim_container_ooms_total")
    harness.kernel.end(process.pid, code)
    await exited(container)
    assert container.status.reason == reason
    assert sample("cri_shim_container_ooms_total") - before == (reason == "OOMKilled")


@pytest.mark.parametrize(("kills", "reason"), [(0, "Error"), (1, "OOMKilled")])
async def test_a_stop_hides_no_earlier_loss_of_a_process(
    harness: NodeHarness, kills: int, reason: str
) -> None:
    container = await harness.start(await harness.run_pod())
    process = process_of(harness, container)
    harness.kernel.cgroups.ooms[process.cgroup] = kills
    await harness.containers.stop_container(container.id, 0)
    assert (container.status.exit_code, container.status.reason) == (137, reason)


async def test_the_last_line_of_a_log_is_closed_before_the_exit_is_shown(
    harness: NodeHarness, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    sandbox = harness.pods.find(
        await harness.pods.run_pod_sandbox(pod_config(log_directory=str(logs)), "")
    )
    container = await harness.start(sandbox, log_path="main.log")
    log_file = logs / "main.log"
    log_file.write_text("2026-01-01T00:00:00.000000000+00:00 stdout P no end\n")
    harness.kernel.end(process_of(harness, container).pid, 0)
    await exited(container)
    assert log_file.read_text().splitlines()[1:] == [
        "2026-01-01T00:00:00.000000000+00:00 stdout F "
    ]


async def test_a_log_that_cannot_be_closed_delays_no_exit(
    harness: NodeHarness, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    sandbox = harness.pods.find(
        await harness.pods.run_pod_sandbox(pod_config(log_directory=str(logs)), "")
    )
    container = await harness.start(sandbox, log_path="main.log")
    logs.rmdir()
    with capture_logs() as told:
        harness.kernel.end(process_of(harness, container).pid, 0)
        await exited(container)
    assert container.status.reason == "Completed"
    assert "cannot close the last line of the log" in [line["event"] for line in told]


async def test_a_container_whose_monitor_died_is_killed_and_says_so(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    process = process_of(harness, container)
    assert container.status.monitor is not None
    harness.kernel.end(container.status.monitor.pid, 137)
    await exited(container)
    assert process.pid not in harness.kernel.processes
    assert container.status.exit_code == 137
    assert container.status.reason == "MonitorDied"


async def test_a_container_whose_monitor_died_is_killed_again_until_it_is_dead(
    harness: NodeHarness,
) -> None:
    container = await harness.start(await harness.run_pod())
    process = process_of(harness, container)
    harness.points.fail("cgroup.kill", DeadlineError("it hangs in the kernel"))
    assert container.status.monitor is not None
    harness.kernel.end(container.status.monitor.pid, 137)
    await until(lambda: harness.points.passed.count("cgroup.kill") > 1)
    assert container.state is ContainerState.RUNNING
    harness.points.heal()
    await harness.containers.stop_container(container.id, 10)
    assert process.pid not in harness.kernel.processes
    assert container.status.reason == "MonitorDied"


# --- StopContainer -----------------------------------------------------------------------------------------------


async def test_a_stop_asks_with_the_containers_own_signal(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    config = container_config()
    config.stop_signal = api.SIGNAL_SIGQUIT
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    await harness.containers.start_container(created)
    container = harness.containers.find(created)
    pid = process_of(harness, container).pid
    await harness.containers.stop_container(created, 30)
    assert harness.kernel.signals == [(pid, signal.SIGQUIT)]
    assert container.status.exit_code == 128 + signal.SIGQUIT


async def in_a_sandbox(harness: NodeHarness, stop_signal: api.Signal.ValueType) -> Container:
    sandbox = harness.pods.find(await harness.pods.run_pod_sandbox(pod_config(), "kata"))
    config = container_config()
    config.stop_signal = stop_signal
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    await harness.containers.start_container(created)
    return harness.containers.find(created)


@pytest.mark.parametrize(
    ("stop_signal", "by_runtime"), [(api.SIGNAL_SIGTERM, False), (api.SIGNAL_SIGQUIT, True)]
)
async def test_in_a_sandbox_the_runtime_delivers_what_would_end_the_process_that_stands_for_it(
    harness: NodeHarness, stop_signal: api.Signal.ValueType, *, by_runtime: bool
) -> None:
    container = await in_a_sandbox(harness, stop_signal)
    await harness.containers.stop_container(container.id, 30)
    number = container.status.exit_code - 128
    assert signal.Signals(number).name == api.Signal.Name(stop_signal).removeprefix("SIGNAL_")
    assert (number in harness.runtimes["kata"].sent) is by_runtime


async def test_a_runtime_that_delivers_no_signal_holds_a_stop_no_longer_than_its_grace_period(
    harness: NodeHarness,
) -> None:
    container = await in_a_sandbox(harness, api.SIGNAL_SIGQUIT)
    hold = harness.points.hold("runtime.kill")
    stop = asyncio.ensure_future(harness.containers.stop_container(container.id, 0.02))  # type: ignore[arg-type]
    await hold.reached.wait()
    await stop
    assert container.status.exit_code == 137
    hold.release()


async def test_a_stop_kills_after_the_grace_period(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    process = process_of(harness, container)
    process.deaf_to.add(signal.SIGTERM)
    await harness.containers.stop_container(container.id, 0.02)  # type: ignore[arg-type]
    assert harness.kernel.signals[:2] == [
        (process.pid, signal.SIGTERM),
        (process.pid, signal.SIGKILL),
    ]
    assert container.status.exit_code == 137


async def test_a_stop_without_grace_kills_at_once(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    pid = process_of(harness, container).pid
    await harness.containers.stop_container(container.id, 0)
    assert harness.kernel.signals[0] == (pid, signal.SIGKILL)


async def test_a_stop_that_kills_is_over_once_nothing_of_the_container_runs(
    harness: NodeHarness,
) -> None:
    container = await harness.start(await harness.run_pod())
    hold = harness.points.hold("cgroup.kill", everyone=True)
    stopping = asyncio.ensure_future(harness.containers.stop_container(container.id, 0))
    await until(lambda: container.status.exit_code == 137)
    await hold.reached.wait()
    assert not stopping.done()
    hold.release()
    await asyncio.wait_for(stopping, 5)


async def stopped(
    harness: NodeHarness, container: Container, clock: MovableClock, timeout_s: int = 0
) -> None:
    """Stop it, by a clock that moves over all that this waits for."""
    stopping = asyncio.ensure_future(harness.containers.stop_container(container.id, timeout_s))
    patience_s = timeout_s + 10 * exit_handling_module.KILL_TIMEOUT_S
    await clock.until(stopping.done, within_s=patience_s)
    await stopping


async def test_what_outlives_its_first_process_is_killed_with_its_cgroup(
    harness: NodeHarness, clock: MovableClock
) -> None:
    container = await harness.start(await harness.run_pod())
    harness.monitors.write_exit_files = False  # as one that waits for somebody who holds its pipes
    stopping = asyncio.ensure_future(harness.containers.stop_container(container.id, 0))
    await clock.until(
        lambda: "cgroup.kill" in harness.points.passed,
        within_s=2 * exit_handling_module.KILLED_ALONE_S,
    )
    leave_exit_file(harness.paths.exits_dir, container.id, 137)
    await stopping
    assert container.status.exit_code == 137


async def test_a_second_stop_shortens_the_first(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    process = process_of(harness, container)
    process.deaf_to.add(signal.SIGTERM)
    patient = asyncio.ensure_future(harness.containers.stop_container(container.id, 600))
    await until(lambda: harness.kernel.signals)
    longer = asyncio.ensure_future(harness.containers.stop_container(container.id, 900))
    await turn_over()
    assert not patient.done()
    await harness.containers.stop_container(container.id, 0)
    await asyncio.gather(patient, longer)
    assert [number for _, number in harness.kernel.signals].count(signal.SIGTERM) == 1
    assert container.status.exit_code == 137


async def test_a_stop_does_not_wait_for_what_is_torn_down_after_the_end(
    harness: NodeHarness, clock: MovableClock
) -> None:
    container = await harness.start(await harness.run_pod())
    harness.exits.forget(container.id)
    harness.points.fail("cgroup.remove", CriShimError("busy"))
    # It would not end, were it to wait for that.
    await stopped(harness, container, clock)
    assert container.state is ContainerState.EXITED
    harness.points.heal()
    await clock.until(lambda: container.status.torn_down, within_s=60)


async def test_a_stop_that_comes_while_another_kills_waits_with_it(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    harness.monitors.write_exit_files = False
    first = asyncio.ensure_future(outcome_of(harness.containers.stop_container(container.id, 0)))
    await until(lambda: "cgroup.kill" in harness.points.passed)
    await turn_over()
    second = asyncio.ensure_future(outcome_of(harness.containers.stop_container(container.id, 0)))
    await turn_over()
    leave_exit_file(harness.paths.exits_dir, container.id, 137)
    assert [await first, await second] == [None, None]


async def test_stopping_what_has_exited_or_is_gone_succeeds(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    harness.kernel.end(process_of(harness, container).pid, 4)
    await exited(container)
    await harness.containers.stop_container(container.id, 10)
    assert container.status.exit_code == 4
    await harness.containers.stop_container("0" * 64, 10)


async def test_a_created_container_can_be_stopped(harness: NodeHarness) -> None:
    container = await harness.create(await harness.run_pod())
    await harness.containers.stop_container(container.id, 1)
    assert container.state is ContainerState.EXITED


async def test_a_stop_whose_caller_goes_away_goes_on(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    hold = harness.points.hold("cgroup.kill")
    call = asyncio.ensure_future(harness.containers.stop_container(container.id, 0))
    await hold.reached.wait()
    call.cancel()
    await outcome_of(call)
    hold.release()
    await exited(container)


async def test_a_process_that_hangs_in_the_kernel_is_said_and_may_be_stopped_later(
    harness: NodeHarness, clock: MovableClock
) -> None:
    container = await harness.start(await harness.run_pod())
    process = process_of(harness, container)
    process.deaf_to.add(signal.SIGKILL)
    process.cgroup = ""  # it left its cgroup, so that no look there tells
    with pytest.raises(DeadlineError, match="hangs in the kernel"):
        await stopped(harness, container, clock)
    assert container.state is ContainerState.RUNNING
    process.deaf_to.clear()
    await harness.containers.stop_container(container.id, 10)
    assert container.status.exit_code == 128 + signal.SIGTERM


async def test_a_container_whose_process_nobody_knows_is_stopped_by_its_cgroup(
    harness: NodeHarness, clock: MovableClock
) -> None:
    sandbox = await harness.run_pod()
    container = make_container(sandbox_id=sandbox.id, status=ContainerStatus(committed_at_ns=1))
    harness.stored.create(container)
    process = harness.kernel.spawn(("lost",), cgroup=harness.cgroup_paths.directory_of(container))
    await stopped(harness, container, clock, 10)
    assert process.pid not in harness.kernel.processes
    assert (container.status.exit_code, container.status.reason) == (137, "MonitorDied")


@pytest.mark.parametrize(("left", "expected"), [(5, (5, "Error")), (None, (137, "MonitorDied"))])
async def test_a_stop_notices_an_end_that_was_missed(
    harness: NodeHarness, left: int | None, expected: tuple[int, str], clock: MovableClock
) -> None:
    container = await harness.start(await harness.run_pod())
    harness.exits.forget(container.id)
    harness.monitors.write_exit_files = False
    harness.kernel.end(process_of(harness, container).pid, 5)
    if left is not None:
        leave_exit_file(harness.paths.exits_dir, container.id, left)
    await stopped(harness, container, clock)
    assert (container.status.exit_code, container.status.reason) == expected
