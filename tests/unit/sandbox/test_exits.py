"""How ends become known: by the file, by the process, by the monitor; once each, and soon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from cri_shim.sandbox import exits as exits_module
from cri_shim.sandbox.exits import Exit, ExitWatch, read_exit_file
from cri_shim.sandbox.store.model import Process
from tests.fakes.clock import turn_over, until
from tests.fakes.kernel import FakeProcess, Kernel
from tests.fakes.points import Points
from tests.fakes.runtime import leave_exit_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from cri_shim.host.port import Host
    from tests.fakes.clock import MovableClock

ID, OTHER = "a" * 64, "b" * 64


class Node:
    """An exit watch, its directory and its kernel."""

    def __init__(self, directory: Path) -> None:
        self.kernel = Kernel(Points())
        self.directory = directory
        self.reported: list[tuple[str, Exit]] = []
        self.needed: list[str] = []
        self.watch = self.make_watch()

    def make_watch(self) -> ExitWatch:
        return ExitWatch(
            self.directory, host=cast("Host", self.kernel), needs_monitor=self.needed.append
        )

    def open(self) -> None:
        self.watch.open(lambda i, e: self.reported.append((i, e)))

    def begin(self, object_id: str = ID) -> tuple[FakeProcess, FakeProcess]:
        """A container and its monitor, both running and watched."""
        monitor = self.kernel.spawn()
        process = self.kernel.spawn(parent=monitor.pid)
        self.watch.watch(object_id, _named(process), _named(monitor))
        return process, monitor

    def codes(self) -> list[tuple[str, int | None]]:
        return [(object_id, exit_.code) for object_id, exit_ in self.reported]


def _named(process: FakeProcess) -> Process:
    return Process(process.pid, process.start_ticks)


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    made.watch = made.make_watch()
    made.open()
    yield made
    made.watch.close()
    assert made.kernel.watches == {}


@pytest.mark.asyncio
async def test_a_file_alone_is_enough(node: Node) -> None:
    node.begin()
    leave_exit_file(node.directory, ID, 3)
    await until(lambda: node.reported)
    assert node.codes() == [(ID, 3)]


@pytest.mark.asyncio
async def test_the_exit_has_the_time_of_its_file(node: Node) -> None:
    node.begin()
    half = node.directory / ".half"
    half.write_text("0\n")
    os.utime(half, ns=(1_000_000_007, 1_000_000_007))
    half.rename(node.directory / ID)
    await until(lambda: node.reported)
    assert node.reported == [(ID, Exit(0, 1_000_000_007))]


@pytest.mark.asyncio
async def test_a_file_that_is_there_when_the_process_ends_is_taken_without_waiting(
    node: Node,
) -> None:
    process, _ = node.begin()
    leave_exit_file(node.directory, ID, 4)
    node.kernel.end(process.pid)
    await turn_over(3)
    assert node.codes() == [(ID, 4)]
    assert node.needed == []


@pytest.mark.asyncio
async def test_a_process_that_ends_first_is_reported_when_its_file_comes(node: Node) -> None:
    process, _ = node.begin()
    node.kernel.end(process.pid)
    await turn_over()
    assert node.reported == []
    assert node.needed == [ID]  # whoever holds the monitor up hears of it
    leave_exit_file(node.directory, ID, 5)
    await until(lambda: node.reported)
    assert node.codes() == [(ID, 5)]


@pytest.mark.asyncio
async def test_an_end_is_reported_once_however_many_tell_of_it(node: Node) -> None:
    process, monitor = node.begin()
    leave_exit_file(node.directory, ID, 6)
    node.kernel.end(process.pid)
    node.kernel.end(monitor.pid)
    await until(lambda: node.reported)
    leave_exit_file(node.directory, ID, 7)
    await until(lambda: True)
    await turn_over()
    assert node.codes() == [(ID, 6)]
    assert node.kernel.watches == {}


@pytest.mark.asyncio
async def test_a_monitor_that_dies_without_a_file_takes_the_code_with_it(node: Node) -> None:
    _, monitor = node.begin()
    node.kernel.end(monitor.pid)
    await until(lambda: node.reported)
    assert node.reported == [(ID, Exit(None, 0))]


@pytest.mark.asyncio
async def test_a_monitor_that_ends_after_its_file_is_no_loss(node: Node) -> None:
    _, monitor = node.begin()
    (node.directory / ID).write_text("8")  # unseen by the watch, which waits for renames
    node.kernel.end(monitor.pid)
    await until(lambda: node.reported)
    assert node.codes() == [(ID, 8)]


@pytest.mark.asyncio
async def test_a_slow_monitor_is_warned_of_once_and_waited_for(
    node: Node, clock: MovableClock
) -> None:
    process, _ = node.begin()
    with capture_logs() as logs:
        node.kernel.end(process.pid)
        await clock.sleep(2 * exits_module.SLOW_MONITOR_S)
    assert [(line["log_level"], line["id"]) for line in logs] == [("warning", ID)]
    assert node.reported == []
    leave_exit_file(node.directory, ID, 5)
    await until(lambda: node.reported)
    assert node.codes() == [(ID, 5)]


@pytest.mark.asyncio
async def test_a_slow_monitor_that_dies_is_not_waited_for_any_longer(
    node: Node, clock: MovableClock
) -> None:
    process, monitor = node.begin()
    with capture_logs() as logs:
        node.kernel.end(process.pid)
        await clock.until(lambda: logs, within_s=exits_module.HUNG_MONITOR_S)
    node.kernel.end(monitor.pid)
    await until(lambda: node.reported)
    assert node.reported == [(ID, Exit(None, 0))]


@pytest.mark.asyncio
async def test_what_nobody_monitors_has_ended_when_its_process_has(node: Node) -> None:
    process = node.kernel.spawn()
    node.watch.watch(ID, _named(process), None)
    node.kernel.end(process.pid)
    await until(lambda: node.reported)
    assert node.reported == [(ID, Exit(None, 0))]
    assert node.needed == []


@pytest.mark.asyncio
async def test_what_nobody_monitors_and_is_forgotten_reports_nothing(node: Node) -> None:
    process = node.kernel.spawn()
    node.watch.watch(ID, _named(process), None)
    node.watch.forget(ID)
    node.kernel.end(process.pid)
    await turn_over()
    assert node.reported == []


@pytest.mark.asyncio
async def test_a_monitor_that_hangs_is_given_up_but_not_before_its_time(
    node: Node, clock: MovableClock
) -> None:
    process, _ = node.begin()
    node.kernel.end(process.pid)
    await clock.sleep(0.9 * exits_module.HUNG_MONITOR_S)
    assert node.reported == []
    await clock.sleep(0.2 * exits_module.HUNG_MONITOR_S)
    assert node.codes() == [(ID, None)]


@pytest.mark.asyncio
async def test_a_file_seen_by_nobody_is_found_before_the_warning(
    node: Node, clock: MovableClock
) -> None:
    process, _ = node.begin()
    with capture_logs() as logs:
        node.kernel.end(process.pid)
        await turn_over()
        (node.directory / ID).write_text("9")
        await clock.until(lambda: node.reported, within_s=2 * exits_module.SLOW_MONITOR_S)
    assert node.codes() == [(ID, 9)]
    assert logs == []


@pytest.mark.asyncio
async def test_a_file_seen_by_nobody_is_found_before_giving_up(
    node: Node, clock: MovableClock
) -> None:
    process, _ = node.begin()
    with capture_logs() as logs:
        node.kernel.end(process.pid)
        await clock.until(lambda: logs, within_s=exits_module.HUNG_MONITOR_S)
        (node.directory / ID).write_text("9")
        await clock.until(lambda: node.reported, within_s=2 * exits_module.HUNG_MONITOR_S)
    assert node.codes() == [(ID, 9)]
    assert len(logs) == 1


@pytest.mark.asyncio
async def test_what_is_forgotten_after_the_warning_is_not_reported(
    node: Node, clock: MovableClock
) -> None:
    process, _ = node.begin()
    with capture_logs() as logs:
        node.kernel.end(process.pid)
        await clock.until(lambda: logs, within_s=exits_module.HUNG_MONITOR_S)
    node.watch.forget(ID)
    await clock.sleep(2 * exits_module.HUNG_MONITOR_S)
    assert node.reported == []


@pytest.mark.asyncio
async def test_an_end_from_before_the_watching_is_reported(node: Node) -> None:
    leave_exit_file(node.directory, ID, 1)
    node.watch.watch(ID, Process(5_999_998, 1), Process(5_999_999, 1))
    await until(lambda: node.reported)
    assert node.codes() == [(ID, 1)]


@pytest.mark.asyncio
async def test_a_later_process_of_the_same_number_is_not_taken_for_the_old_one(node: Node) -> None:
    stranger = node.kernel.spawn()
    monitor = node.kernel.spawn()
    leave_exit_file(node.directory, ID, 2)
    node.watch.watch(ID, Process(stranger.pid, stranger.start_ticks - 1), _named(monitor))
    await until(lambda: node.reported)
    assert node.codes() == [(ID, 2)]


@pytest.mark.asyncio
async def test_files_of_others_and_half_files_mean_nothing(node: Node) -> None:
    node.begin()
    leave_exit_file(node.directory, OTHER, 0)
    leave_exit_file(node.directory, "not-an-id", 0)
    leave_exit_file(node.directory, ID, "")
    await until(lambda: (node.directory / ID).exists())
    await turn_over()
    assert node.reported == []


@pytest.mark.asyncio
async def test_garbage_in_the_file_is_no_code(node: Node) -> None:
    _, monitor = node.begin()
    leave_exit_file(node.directory, ID, "twelve")
    node.kernel.end(monitor.pid)
    await until(lambda: node.reported)
    assert node.codes() == [(ID, None)]


@pytest.mark.asyncio
async def test_after_lost_events_every_file_is_looked_at_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks: list[Callable[[str | None], None]] = []

    class SilentWatch:
        def __init__(self, _path: Path, _mask: int, callback: Callable[[str | None], None]) -> None:
            callbacks.append(callback)

        def close(self) -> None:
            pass

    node.watch.close()
    monkeypatch.setattr(exits_module, "DirectoryWatch", SilentWatch)
    node.open()
    node.begin(ID)
    node.begin(OTHER)
    node.begin("c" * 64)
    leave_exit_file(node.directory, ID, 1)
    leave_exit_file(node.directory, OTHER, 2)
    callbacks[0](None)
    assert sorted(node.codes()) == [(ID, 1), (OTHER, 2)]


@pytest.mark.asyncio
async def test_what_is_forgotten_is_not_reported(node: Node) -> None:
    process, monitor = node.begin()
    node.kernel.end(process.pid)  # the wait for the file has begun
    await turn_over()
    node.watch.forget(ID)
    node.watch.forget(ID)
    leave_exit_file(node.directory, ID, 1)
    node.kernel.end(monitor.pid)
    await until(lambda: (node.directory / ID).exists())
    await turn_over()
    assert node.reported == []


@pytest.mark.asyncio
async def test_closing_watches_nothing_more_and_kills_nobody(node: Node) -> None:
    process, monitor = node.begin()
    node.watch.close()
    node.watch.close()
    leave_exit_file(node.directory, ID, 1)
    await turn_over()
    assert node.reported == []
    assert {process.pid, monitor.pid} <= set(node.kernel.processes)


def test_an_exit_file_is_read_as_a_number_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / ID
    assert read_exit_file(path) is None
    path.write_text("137")
    assert read_exit_file(path) == Exit(137, path.stat().st_mtime_ns)
    path.write_bytes(b"\xff")
    assert read_exit_file(path) is None
    path.unlink()
    path.mkdir()
    assert read_exit_file(path) is None
