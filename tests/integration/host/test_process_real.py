"""The reaper under many quick processes: no exit code is lost, nothing is left."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from cri_shim.host.process import Reaper
from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]


# Leaves a process behind and its pid in a file, and never waits for it, as `runc exec --detach --pid-file` does. (A
# shell won't do: it may collect a quick one itself.) Half of them are zombies before their parent ends.
DETACH = """
($pid_file, $code, $early) = @ARGV;
if ($pid = fork) {
    open F, ">", $pid_file; print F $pid; close F;
    select undef, undef, undef, 0.003 if $early;
    exit 0;
}
close STDOUT; close STDERR;
select undef, undef, undef, 0.003 unless $early;
exit $code;
"""


async def detach(reaper: Reaper, pid_file: Path, code: int, *, early: bool) -> int:
    """Leave a process behind that exits with `code`; the code that its claim gives."""
    argv = ["perl", "-e", DETACH, str(pid_file), str(code), "1" if early else ""]
    with reaper.awaiting_orphans():
        done = await reaper.run(argv, timeout_s=20)
        assert done.ok, done.stderr_tail
        child = reaper.claim(int(pid_file.read_text()))
        assert child is not None
    return (await child.wait()).exit_code


async def test_500_orphans_are_claimed_with_their_exact_codes(tmp_path: Path) -> None:
    fds = os.listdir("/proc/self/fd")
    reaper = Reaper()
    reaper.open()
    slots = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        async with slots:
            early = number % 2 == 0
            code = await detach(reaper, tmp_path / f"{number}", number % 250, early=early)
            assert code == number % 250

    async with asyncio.TaskGroup() as group:
        for number in range(500):
            group.create_task(one(number))
    reaper.close()
    assert os.listdir("/proc/self/fd") == fds
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - it doesn't block


async def test_500_commands_keep_their_codes_and_output_beside_other_children(
    tmp_path: Path,
) -> None:
    reaper = Reaper()
    reaper.open()
    slots = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        async with slots:
            if number % 5 == 0:
                os.posix_spawn("/bin/true", ["true"], {})  # noqa: ASYNC221 - somebody else's
            script = f"echo {number}; exit {number % 250}"
            done = await reaper.run(["/bin/sh", "-c", script], timeout_s=20)
            assert done.stdout == f"{number}\n".encode()
            assert done.ending.exit_code == number % 250

    async with asyncio.TaskGroup() as group:
        for number in range(500):
            group.create_task(one(number))
    reaper.close()


async def test_run_costs_little_beyond_fork_and_exec() -> None:
    def floor() -> tuple[float, float]:
        started, used = time.perf_counter(), time.process_time()
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        return time.perf_counter() - started, time.process_time() - used

    floors = [floor() for _ in range(100)]
    reaper = Reaper()
    reaper.open()
    ours = []
    for _ in range(100):
        started, used = time.perf_counter(), time.process_time()
        await reaper.run(["/bin/true"], timeout_s=20)
        ours.append((time.perf_counter() - started, time.process_time() - used))
    reaper.close()
    # The quickest, and of processor time the quickest tenth: not what else the machine does meanwhile.
    (wall, cpu), (floor_wall, floor_cpu) = zip(*ours, strict=True), zip(*floors, strict=True)
    cost = statistics.quantiles(cpu, n=10)[0] - statistics.quantiles(floor_cpu, n=10)[0]
    assert cost < 0.002 * SLOWNESS
    assert min(wall) - min(floor_wall) < 0.01 * SLOWNESS
