from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cri_shim.host.pidfd import (
    PidWatch,
    ends_of,
    has_ended,
    kill_pidfd,
    kill_process,
    open_pidfd,
    parent_pid,
    start_time_ticks,
)
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_own_process_has_a_start_time_and_a_parent() -> None:
    assert (start_time_ticks(os.getpid()) or 0) > 0
    assert parent_pid(os.getpid()) == os.getppid()


def test_missing_process_has_neither(dead_pid: int) -> None:
    assert start_time_ticks(dead_pid) is None
    assert parent_pid(dead_pid) is None
    assert open_pidfd(dead_pid) is None
    assert not kill_process(dead_pid, None)


@pytest.mark.parametrize("pid", [0, -1])
def test_number_that_is_no_pid_is_nobody(pid: int) -> None:
    assert open_pidfd(pid) is None


def test_later_process_of_the_same_number_is_not_it(sleeper: subprocess.Popen[bytes]) -> None:
    ticks = start_time_ticks(sleeper.pid)
    assert ticks is not None
    assert open_pidfd(sleeper.pid, ticks + 1) is None
    assert not kill_process(sleeper.pid, ticks + 1)
    assert sleeper.poll() is None
    assert kill_process(sleeper.pid, ticks)
    assert sleeper.wait() == -9


def test_signal_to_what_has_gone_is_no_error(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = open_pidfd(sleeper.pid)
    assert pidfd is not None
    assert not has_ended(pidfd)
    assert kill_pidfd(pidfd)
    sleeper.wait()
    assert has_ended(pidfd)
    assert not kill_pidfd(pidfd)
    os.close(pidfd)


@pytest.mark.asyncio
async def test_watch_tells_once_when_the_process_ends(sleeper: subprocess.Popen[bytes]) -> None:
    watch = PidWatch()
    told: list[str] = []
    ended = asyncio.Event()

    def tell() -> None:
        told.append("ended")
        ended.set()

    watch.watch(sleeper.pid, start_time_ticks(sleeper.pid), tell)
    await turn_over()
    assert told == []
    sleeper.kill()
    await asyncio.wait_for(ended.wait(), 5)
    await turn_over()
    assert told == ["ended"]
    assert len(watch) == 0


@pytest.mark.asyncio
async def test_watch_of_what_has_gone_tells_soon_but_not_at_once(dead_pid: int) -> None:
    watch = PidWatch()
    told: list[int] = []
    watch.watch(dead_pid, None, lambda: told.append(1))
    watch.watch(os.getpid(), 1, lambda: told.append(2))
    assert told == []
    await asyncio.sleep(0)
    assert told == [1, 2]


@pytest.mark.asyncio
async def test_unwatched_process_is_not_told(sleeper: subprocess.Popen[bytes]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watch = PidWatch()
    told: list[int] = []
    watch.watch(sleeper.pid, None, lambda: told.append(1))
    with pytest.raises(ValueError, match="watched already"):
        watch.watch(sleeper.pid, None, lambda: told.append(2))
    watch.unwatch(sleeper.pid)
    watch.unwatch(sleeper.pid)
    watch.watch(sleeper.pid, None, lambda: told.append(3))
    watch.close()
    sleeper.kill()
    sleeper.wait()
    await turn_over()
    assert told == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.asyncio
async def test_number_that_came_back_tells_of_the_earlier_process_first(
    sleeper: subprocess.Popen[bytes],
) -> None:
    watch = PidWatch()
    told: list[int] = []
    watch.watch(sleeper.pid, None, lambda: told.append(1))
    sleeper.kill()
    sleeper.wait()
    watch.watch(sleeper.pid, None, lambda: told.append(2))
    assert told == [1]
    await asyncio.sleep(0)
    assert told == [1, 2]


# --- several at once ----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_ends_of_several_are_waited_for_and_who_still_runs_is_named(
    sleeper: subprocess.Popen[bytes], other: subprocess.Popen[bytes], dead_pid: int
) -> None:
    both: list[tuple[int, int | None]] = [
        (one.pid, start_time_ticks(one.pid)) for one in (sleeper, other)
    ]
    other.kill()
    assert await ends_of([*both, (dead_pid, None)], 0.1) == [sleeper.pid]
    sleeper.kill()
    assert await ends_of(both, 10) == []


@pytest.mark.asyncio
async def test_an_end_that_is_waited_for_leaves_no_descriptor(
    sleeper: subprocess.Popen[bytes],
) -> None:
    before = os.listdir("/proc/self/fd")
    waiting = asyncio.create_task(ends_of([(sleeper.pid, None)], 10))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert os.listdir("/proc/self/fd") == before
