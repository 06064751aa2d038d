"""The reaper with real children of /bin/sh; needs no root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import CommandError, DeadlineError
from cri_shim.host import syscalls
from cri_shim.host.pidfd import start_time_ticks
from cri_shim.host.process import COLLECTED_AT_ONCE, Reaper
from cri_shim.host.procstat import process_entry
from cri_shim.host.proctree import process_table
from tests.fakes.clock import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    before = set(os.listdir("/proc/self/fd"))
    children_before = children()
    reaper = Reaper()
    reaper.open()
    yield reaper
    await wait_childless(children_before)
    reaper.close()
    assert set(os.listdir("/proc/self/fd")) == before


def children() -> set[int]:
    """Our children now; other tests' fixtures may keep some for a whole session."""
    return {pid for pid, entry in process_table().items() if entry.parent_pid == os.getpid()}


async def wait_childless(but: Collection[int] = ()) -> None:
    """A test leaves no process: neither its child nor what was re-parented to us and killed."""
    await until(lambda: not children().difference(but))


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def process_exists(pid: int) -> bool:
    """A zombie is about to be collected, and runs no more."""
    entry = process_entry(pid)
    return entry is not None and not entry.zombie


async def wait_gone(pid: int) -> None:
    await until(lambda: not process_exists(pid))


async def wait_written(file: Path) -> None:
    await until(lambda: file.exists())


async def test_run_gives_output_status_and_stderr(reaper: Reaper) -> None:
    done = await reaper.run(sh("cat; echo oops >&2; exit 3"), timeout_s=10, stdin=b"hello")
    assert done.stdout == b"hello"
    assert done.stderr_tail == "oops\n"
    assert done.ending.exit_code == 3
    assert not done.ok
    assert done.ending.describe() == "exited with status 3"
    assert 0 < done.seconds < 10


async def test_input_and_output_may_be_larger_than_a_pipe(reaper: Reaper) -> None:
    data = os.urandom(700_000)
    done = await reaper.run(["cat"], timeout_s=10, stdin=data)
    assert done.stdout == data


async def test_output_that_fills_the_pipe_exactly_is_whole(reaper: Reaper) -> None:
    done = await reaper.run(sh("head -c 65536 /dev/zero"), timeout_s=10)
    assert len(done.stdout) == 65536


async def test_what_nobody_reads_goes_to_dev_null(reaper: Reaper) -> None:
    script = 'stdout=$(readlink /proc/$$/fd/1); head -c 1000000 /dev/zero; echo "$stdout" >&2'
    done = await reaper.run(sh(script), timeout_s=10, max_stdout_bytes=0)
    assert (done.ok, done.stdout, done.stderr_tail) == (True, b"", "/dev/null\n")


async def test_output_is_whole_up_to_the_bound(reaper: Reaper) -> None:
    done = await reaper.run(sh("head -c 1000 /dev/zero"), timeout_s=10, max_stdout_bytes=1000)
    assert len(done.stdout) == 1000


async def test_output_beyond_the_bound_stops_the_command(reaper: Reaper) -> None:
    with pytest.raises(CommandError, match=r"yes wrote more than 1000 bytes to stdout"):
        await reaper.run(["yes"], timeout_s=10, max_stdout_bytes=1000)


async def test_only_the_tail_of_stderr_is_kept(reaper: Reaper) -> None:
    done = await reaper.run(sh("head -c 300000 /dev/zero >&2; echo last >&2"), timeout_s=10)
    assert len(done.stderr_tail) == 4096
    assert done.stderr_tail.endswith("last\n")


async def test_child_without_stdin_reads_nothing(reaper: Reaper) -> None:
    done = await reaper.run(["cat"], timeout_s=10)
    assert done.ok
    assert done.stdout == b""


async def test_killed_child_has_the_code_that_shells_give(reaper: Reaper) -> None:
    done = await reaper.run(sh("kill -TERM $$"), timeout_s=10)
    assert done.ending.exit_code == 143
    assert done.ending.signal == signal.SIGTERM
    assert done.ending.describe() == "was killed by SIGTERM"


async def test_missing_program_is_named(reaper: Reaper) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await reaper.run(["/no/such/program"], timeout_s=1)
    assert caught.value.filename == "/no/such/program"


async def test_missing_working_directory_is_named(reaper: Reaper, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await reaper.run(["true"], timeout_s=1, cwd=tmp_path / "none")
    assert caught.value.filename == tmp_path / "none"


async def test_child_runs_where_it_is_told(reaper: Reaper, tmp_path: Path) -> None:
    done = await reaper.run(sh("pwd"), timeout_s=10, cwd=tmp_path)
    assert done.stdout.decode().strip() == str(tmp_path)


async def test_child_gets_path_and_no_other_variable(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    done = await reaper.run(["/usr/bin/env"], timeout_s=10)
    assert [line.split("=")[0] for line in done.stdout.decode().splitlines()] == ["PATH"]


async def test_child_gets_the_environment_it_is_given(reaper: Reaper) -> None:
    done = await reaper.run(["/usr/bin/env"], timeout_s=10, env={"A": "1"})
    assert done.stdout == b"A=1\n"


async def test_child_has_only_the_descriptors_it_was_given(reaper: Reaper, tmp_path: Path) -> None:
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    passed_read, passed_write = os.pipe()
    script = "import os; print([n for n in range(256) if os.path.exists(f'/proc/self/fd/{n}')])"
    try:
        done = await reaper.run(
            [sys.executable, "-c", script], timeout_s=20, pass_fds=[passed_read]
        )
    finally:
        for fd in (inherited, passed_read, passed_write):
            os.close(fd)
    assert done.stdout.decode().strip() == f"[0, 1, 2, {passed_read}]"


async def test_deadline_kills_the_group_and_tells_what_was_said(
    reaper: Reaper, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid_file}; echo waiting for it >&2; wait"
    with pytest.raises(
        DeadlineError, match=r"/bin/sh did not finish within 0\.3 s.*waiting for it"
    ):
        async with asyncio.timeout(60):
            await reaper.run(sh(script), timeout_s=0.3)
    await wait_gone(int(pid_file.read_text()))


async def test_deadline_holds_for_a_child_that_ignores_signals(reaper: Reaper) -> None:
    with pytest.raises(DeadlineError):
        await reaper.run(sh("trap '' TERM INT HUP; while :; do sleep 1; done"), timeout_s=0.2)


async def test_grandchild_that_holds_the_pipe_is_not_waited_for(
    reaper: Reaper, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    done = await reaper.run(sh(f"sleep 60 & echo $! > {pid_file}; echo said; exit 4"), timeout_s=30)
    assert done.stdout == b"said\n"
    assert done.ending.exit_code == 4
    grandchild = int(pid_file.read_text())
    os.kill(grandchild, signal.SIGKILL)  # it still runs
    await wait_gone(grandchild)


async def test_grandchild_that_writes_for_ever_holds_nobody_up(
    reaper: Reaper, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    done = await reaper.run(sh(f"yes >&2 & echo $! > {pid_file}; sleep 0.05; exit 0"), timeout_s=30)
    assert done.ok
    await wait_gone(int(pid_file.read_text()))  # SIGPIPE


async def test_cancelled_run_leaves_no_process(reaper: Reaper, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 60 & echo $! $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; wait"
    task = asyncio.ensure_future(reaper.run(sh(script), timeout_s=60))
    await wait_written(pid_file)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    grandchild, child = map(int, pid_file.read_text().split())
    assert not process_exists(child)
    await wait_gone(grandchild)


async def test_run_cancelled_twice_still_collects(reaper: Reaper) -> None:
    before = children()
    task = asyncio.ensure_future(reaper.run(["sleep", "60"], timeout_s=60))
    await until(lambda: children() - before)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_spawned_child_is_waited_for_by_many(reaper: Reaper) -> None:
    child = reaper.spawn(sh("sleep 0.1; exit 5"))
    first = asyncio.ensure_future(child.wait())
    second = asyncio.ensure_future(child.wait())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).exit_code == 5
    assert child.ending is not None
    assert (await child.wait()).exit_code == 5


async def test_signal_after_the_end_is_silent(reaper: Reaper) -> None:
    child = reaper.spawn(["true"])
    await child.wait()
    child.kill()
    child.kill_group()


async def test_signal_reaches_the_child(reaper: Reaper) -> None:
    child = reaper.spawn(["sleep", "60"])
    assert await child.wait_at_most(0.05) is None
    child.kill(signal.SIGTERM)
    assert (await child.wait()).signal == signal.SIGTERM


async def test_spawned_child_writes_to_the_descriptor_it_was_given(reaper: Reaper) -> None:
    read, write = os.pipe()
    child = reaper.spawn(["echo", "hi"], stdout=write)
    os.close(write)
    assert os.read(read, 10) == b"hi\n"
    os.close(read)
    await child.wait()


async def test_spawned_child_leads_a_session_of_its_own(reaper: Reaper) -> None:
    child = reaper.spawn(["sleep", "60"])
    assert os.getsid(child.pid) == child.pid
    child.kill()
    await child.wait()


async def test_many_children_ending_at_once_keep_their_codes(reaper: Reaper) -> None:
    children = [reaper.spawn(sh(f"sleep 0.2; exit {code}")) for code in range(40)]
    codes = [(await child.wait()).exit_code for child in children]
    assert codes == list(range(40))


async def test_what_is_left_behind_keeps_its_streams_and_is_not_waited_for(
    reaper: Reaper, tmp_path: Path
) -> None:
    go, pid_file = tmp_path / "go", tmp_path / "pid"
    goes_on = f"while [ ! -e {go} ]; do sleep 0.01; done; umask; readlink /proc/self/fd/0"
    script = f"({goes_on}; exec yes >&2) & echo $! > {pid_file}; echo said >&2; exit 4"
    with reaper.awaiting_orphans():
        done = await reaper.run_detaching(sh(script), timeout_s=30, umask=0o037)
        assert (done.ending.exit_code, done.stderr_tail, done.stdout) == (4, "said\n", b"")
        child = reaper.claim(int(pid_file.read_text()))
    assert child is not None

    def streams() -> list[str]:
        # A shell opens /dev/null once more for what it sets aside: for a moment there is no stream 0.
        with contextlib.suppress(FileNotFoundError):
            return [os.readlink(f"/proc/{child.pid}/fd/{number}") for number in (0, 1)]
        return []

    await until(lambda: streams() == ["/dev/null", "/dev/null"])
    assert "Umask:\t0037\n" in Path(f"/proc/{child.pid}/status").read_text()
    go.touch()
    async with asyncio.timeout(20):
        await child.wait()  # it can't fill more than its file, and nobody reads that


@pytest.mark.parametrize("late", [True, False])
async def test_a_command_that_was_to_leave_something_behind_does_not_go_on(
    reaper: Reaper, tmp_path: Path, *, late: bool
) -> None:
    pid_file = tmp_path / "pid"
    script = f"echo waiting >&2; echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; sleep 600"
    if late:
        with pytest.raises(DeadlineError, match=r"not finish within 0\.2 s .*output: waiting"):
            await reaper.run_detaching(sh(script), timeout_s=0.2)
    else:
        call = asyncio.ensure_future(reaper.run_detaching(sh(script), timeout_s=60))
        await wait_written(pid_file)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert not process_exists(int(pid_file.read_text()))


async def orphan(reaper: Reaper, pid_file: Path, script: str) -> int:
    """A process that its parent left behind; it must outlive that, for a shell collects what it still sees ending."""
    done = await reaper.run(
        sh(f"({script}) </dev/null >/dev/null 2>&1 & echo $! > {pid_file}"), timeout_s=10
    )
    assert done.ok
    return int(pid_file.read_text())


async def test_living_orphan_is_claimed_and_waited_for(reaper: Reaper, tmp_path: Path) -> None:
    pid = await orphan(reaper, tmp_path / "pid", "sleep 0.2; exit 9")
    child = reaper.claim(pid)
    assert child is not None
    assert child.argv == ()
    assert (await child.wait()).exit_code == 9


async def test_orphan_that_has_ended_is_claimed_while_endings_are_kept(
    reaper: Reaper, tmp_path: Path
) -> None:
    with reaper.awaiting_orphans():
        pid = await orphan(reaper, tmp_path / "pid", "sleep 0.1; exit 9")
        await wait_gone(pid)
        child = reaper.claim(pid)
        assert child is not None
        assert child.ending is not None
        assert (await child.wait()).exit_code == 9
        assert reaper.claim(pid) is None


async def test_ending_is_not_kept_when_nobody_awaits_it(reaper: Reaper, tmp_path: Path) -> None:
    pid = await orphan(reaper, tmp_path / "pid", "sleep 0.1; exit 9")
    await wait_collected(pid)
    with reaper.awaiting_orphans():
        assert reaper.claim(pid) is None


async def test_kept_endings_go_with_the_last_window(reaper: Reaper, tmp_path: Path) -> None:
    with reaper.awaiting_orphans():
        with reaper.awaiting_orphans():
            pid = await orphan(reaper, tmp_path / "pid", "sleep 0.1; exit 9")
            await wait_collected(pid)
        assert reaper.claim(pid) is not None
        other = await orphan(reaper, tmp_path / "pid", "sleep 0.1; exit 9")
        await wait_collected(other)
    assert reaper.claim(other) is None


async def test_foreign_own_and_missing_processes_are_not_claimed(reaper: Reaper) -> None:
    child = reaper.spawn(["sleep", "60"])
    assert reaper.claim(child.pid) is None
    assert reaper.claim(1) is None
    assert reaper.claim(os.getpid()) is None
    assert reaper.claim(0) is None
    assert reaper.claim(1 << 22) is None
    child.kill()
    await child.wait()


async def test_children_of_other_code_are_collected(reaper: Reaper) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})  # noqa: ASYNC221 - quick
    await wait_gone(pid)


async def test_closing_cancels_waiters_and_lets_children_live() -> None:
    was_subreaper = syscalls.is_child_subreaper()
    reaper = Reaper()
    reaper.open()
    assert syscalls.is_child_subreaper()
    child = reaper.spawn(["sleep", "60"])
    waiting = asyncio.ensure_future(child.wait())
    await asyncio.sleep(0)
    reaper.close()
    reaper.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert syscalls.is_child_subreaper() == was_subreaper
    assert process_exists(child.pid)
    assert child.ending is None
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)  # noqa: ASYNC222 - it was killed


async def test_closing_ends_a_running_command_with_cancellation() -> None:
    reaper = Reaper()
    reaper.open()
    before = children()
    task = asyncio.ensure_future(reaper.run(["sleep", "0.2"], timeout_s=60))
    await until(lambda: children() - before)
    reaper.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    with contextlib.suppress(ChildProcessError):
        os.wait()  # noqa: ASYNC222 - a fifth of a second


async def test_closed_reaper_starts_nothing() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        Reaper().spawn(["true"])


async def test_child_that_can_not_be_owned_does_not_run(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def out_of_descriptors(pid: int) -> int:
        (tmp_path / "pid").write_text(str(pid))
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", out_of_descriptors)
    with pytest.raises(OSError, match="Too many"):
        reaper.spawn(["sleep", "60"])
    await wait_gone(int((tmp_path / "pid").read_text()))


async def test_at_the_deadline_a_command_may_put_its_things_in_order(
    reaper: Reaper, tmp_path: Path
) -> None:
    script = f"trap 'echo tidy >{tmp_path}/done; exit' TERM; sleep 60 & wait"
    with pytest.raises(DeadlineError):
        await reaper.run(["/bin/sh", "-c", script], timeout_s=0.2)
    assert (tmp_path / "done").read_text() == "tidy\n"


async def test_at_the_deadline_what_left_the_group_dies_too(reaper: Reaper, tmp_path: Path) -> None:
    script = f"setsid sleep 60 & echo $! >{tmp_path}/pid; wait"
    with pytest.raises(DeadlineError):
        await reaper.run(["/bin/sh", "-c", script], timeout_s=0.3)
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: start_time_ticks(pid) is None)
    assert start_time_ticks(pid) is None


async def test_an_ending_is_told_before_the_child_is_collected_and_its_pid_stays_taken(
    reaper: Reaper,
) -> None:
    child = reaper.spawn(["/bin/sh", "-c", "exit 3"])
    ending = await child.wait()
    assert ending.exit_code == 3
    entry = process_entry(child.pid)
    assert entry is not None
    assert entry.zombie
    assert child.pid not in reaper.orphans()
    assert reaper.claim(child.pid) is None
    await wait_collected(child.pid)


async def test_endings_by_signals_are_told_as_they_are(reaper: Reaper) -> None:
    children = [reaper.spawn(["/bin/sleep", "60"]) for _ in range(2)]
    for child, number in zip(children, (signal.SIGTERM, signal.SIGKILL), strict=True):
        child.kill(number)
    endings = [await child.wait() for child in children]
    assert [ending.signal for ending in endings] == [signal.SIGTERM, signal.SIGKILL]


async def test_a_crowd_of_children_is_collected_whole(reaper: Reaper) -> None:
    children = [reaper.spawn(["/bin/true"]) for _ in range(3 * COLLECTED_AT_ONCE)]
    assert {(await child.wait()).wait_status for child in children} == {0}
    for child in children:
        await wait_collected(child.pid)


async def wait_collected(pid: int) -> None:
    await until(lambda: process_entry(pid) is None)


async def test_a_child_that_was_let_go_is_collected_and_takes_no_descriptor(reaper: Reaper) -> None:
    before = len(os.listdir("/proc/self/fd"))
    child = reaper.spawn(["/bin/sleep", "0.1"])
    reaper.let_go(child)
    assert len(os.listdir("/proc/self/fd")) == before
    assert child.settled
    assert process_exists(child.pid)
    await wait_collected(child.pid)
