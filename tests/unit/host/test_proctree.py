"""The process table and the killing of whole families, on real processes of this test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from cri_shim.host import proctree
from cri_shim.host.procstat import ProcessEntry, process_entry
from cri_shim.host.proctree import (
    descendants,
    kill_family,
    process_table,
    session_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A family of three generations, the youngest in a session of its own; each pid comes on a line when it is there.
FAMILY = """
import os, sys, time
def say(): os.write(1, b"%d\\n" % os.getpid())
say()
if os.fork() == 0:
    say()
    if os.fork() == 0:
        os.setsid()
        say()
    time.sleep(600)
time.sleep(600)
"""


def entry(pid: int, parent: int, session: int = 1) -> ProcessEntry:
    return ProcessEntry(pid, parent, session, start_ticks=pid, zombie=False)


@contextmanager
def running(script: str, lines: int = 1) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A Python script in a session of its own, and the pids it prints first."""
    argv = [sys.executable, "-SEc", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(lines)]
        try:
            yield process, pids
        finally:
            for pid in {process.pid, *pids}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


def is_gone(pid: int) -> bool:
    found = process_entry(pid)
    return found is None or found.zombie


# --- reading -----------------------------------------------------------------------------------------------------


def test_this_very_process_is_in_the_table() -> None:
    table = process_table()
    me = table[os.getpid()]
    assert me.parent_pid == os.getppid()
    assert me.session == os.getsid(0)
    assert not me.zombie
    assert process_entry(os.getpid()) == me


def test_nobody_has_no_row() -> None:
    assert process_entry(0x7FFFFFFF) is None


def test_descendants_are_found_through_every_generation() -> None:
    table = {e.pid: e for e in (entry(1, 0), entry(2, 1), entry(3, 2), entry(4, 2), entry(5, 1))}
    assert descendants(table, 2) == {3, 4}
    assert descendants(table, 1) == {2, 3, 4, 5}
    assert descendants(table, 5) == set()
    assert descendants(table, 99) == set()


def test_a_table_read_while_numbers_changed_does_not_turn_in_circles() -> None:
    table = {e.pid: e for e in (entry(2, 3), entry(3, 2))}
    assert descendants(table, 2) == {2, 3}


def test_a_session_has_its_leader_and_all_that_did_not_leave_it() -> None:
    table = {e.pid: e for e in (entry(2, 1, 2), entry(3, 1, 2), entry(4, 3, 4))}
    assert session_of(table, 2) == {2, 3}
    assert session_of(table, 9) == set()


# --- killing -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_family_dies_whole_whatever_session_its_members_are_in() -> None:
    with running(FAMILY, lines=3) as (process, pids):
        root = process_entry(process.pid)
        assert root is not None
        assert await kill_family(process.pid, root.start_ticks, timeout_s=5)
        assert all(is_gone(pid) for pid in pids)
        assert process.wait(5) == -signal.SIGKILL


@pytest.mark.asyncio
async def test_a_member_whose_parents_are_gone_dies_with_its_session() -> None:
    orphan_maker = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        os.write(1, b'%d\\n' % os.getpid())\n"
        "        time.sleep(600)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "time.sleep(600)\n"
    )
    with running(orphan_maker) as (process, [orphan]):
        assert await kill_family(process.pid, None, timeout_s=5)
        assert is_gone(orphan)


@pytest.mark.asyncio
async def test_another_process_of_that_number_is_spared() -> None:
    with running("import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)") as (
        process,
        _,
    ):
        there = process_entry(process.pid)
        assert there is not None
        assert await kill_family(process.pid, there.start_ticks - 1, timeout_s=5)
        assert process_entry(process.pid) == there


@pytest.mark.asyncio
async def test_who_is_gone_already_is_no_failure() -> None:
    with running("import os; os.write(1, b'%d\\n' % os.getpid())") as (process, _):
        process.wait(5)
    assert await kill_family(process.pid, None, timeout_s=5)


@pytest.mark.asyncio
async def test_what_does_not_die_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[tuple[int, int]] = []

    def deaf(pid: int, _ticks: int | None, number: int = signal.SIGKILL) -> bool:
        signals.append((pid, number))
        return True

    monkeypatch.setattr(proctree, "kill_process", deaf)
    with running("import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)") as (
        process,
        _,
    ):
        assert not await kill_family(process.pid, None, timeout_s=0.01)
    assert signals[0] == (process.pid, signal.SIGSTOP)
    assert signals[-1] == (process.pid, signal.SIGKILL)


@pytest.mark.asyncio
async def test_the_head_is_stopped_before_its_family_dies(tmp_path: Path) -> None:
    # It would note the end of its child, and start another one.
    reports = tmp_path / "reports"
    script = (
        "import os, time\n"
        "while True:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.write(1, b'%d\\n' % os.getpid())\n"
        "        time.sleep(600)\n"
        "    os.waitpid(child, 0)\n"
        f"    open({str(reports)!r}, 'w').write('it ended')\n"
    )
    with running(script) as (process, [child]):
        assert await kill_family(process.pid, None, timeout_s=5)
        assert is_gone(child)
        assert is_gone(process.pid)
    assert not reports.exists()
