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
    children_of,
    family_of,
    kill_family,
    orphans_naming,
    process_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
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


# Its grandchild stays when its child ends; the grandchild's pid comes on a line.
ORPHAN_MAKER = """
import os, time
if os.fork() == 0:
    parent = os.getpid()
    if os.fork() == 0:
        while os.getppid() == parent: time.sleep(0.001)
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
"""


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


@pytest.fixture(params=["listed", "scanned"])
def children(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to find children, whatever this kernel has."""
    if request.param == "scanned":
        monkeypatch.setattr(proctree, "kernel_lists_children", lambda: False)
    else:
        assert proctree.kernel_lists_children()
    return str(request.param)


@pytest.mark.usefixtures("children")
def test_a_family_is_found_through_every_generation() -> None:
    with running(FAMILY, lines=3) as (process, [_, child, grandchild]):
        family, complete = family_of(process.pid)
        assert complete
        assert {pid: member.parent_pid for pid, member in family.items()} == {
            child: process.pid,
            grandchild: child,
        }
        assert process.pid in children_of(os.getpid())
        assert children_of(process.pid) == [child]
        assert family_of(grandchild) == ({}, True)


def test_of_strays_those_of_the_session_belong_to_the_family() -> None:
    with running(FAMILY, lines=3) as (process, [_, child, grandchild]):
        # The grandchild has left the session; the child is in it, and of it there are more below.
        family, _ = family_of(child, [process.pid, grandchild, os.getpid(), 0x7FFFFFFF])
        assert set(family) == {grandchild}
        with running(ORPHAN_MAKER) as (other, [orphan]):
            family, _ = family_of(other.pid, [grandchild, orphan, other.pid])
            assert {pid for pid, member in family.items() if not member.zombie} == {orphan}
            assert orphan not in family_of(other.pid, [grandchild])[0]


def test_nobody_has_no_family_and_no_children() -> None:
    assert family_of(0x7FFFFFFF) == ({}, True)
    assert children_of(0x7FFFFFFF) == []


def test_a_child_whose_number_is_somebody_elses_by_now_is_spared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Listed as a child a moment ago; who has that number now has another parent. Nobody's parent is a child of his.
    listed = {os.getpid(): [os.getppid()]}
    monkeypatch.setattr(proctree, "children_of", lambda pid: listed.get(pid, []))
    assert family_of(os.getpid()) == ({}, False)


# --- killing -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.usefixtures("children")
async def test_a_family_dies_whole_whatever_session_its_members_are_in() -> None:
    with running(FAMILY, lines=3) as (process, pids):
        root = process_entry(process.pid)
        assert root is not None
        assert await kill_family(process.pid, root.start_ticks, timeout_s=5)
        assert all(is_gone(pid) for pid in pids)
        assert process.wait(5) == -signal.SIGKILL


@pytest.mark.asyncio
async def test_a_member_whose_parents_are_gone_dies_with_its_session() -> None:
    with running(ORPHAN_MAKER) as (process, [orphan]):
        assert await kill_family(process.pid, None, timeout_s=5, strays=lambda: [orphan])
        assert is_gone(orphan)


@pytest.mark.asyncio
async def test_a_family_that_grows_while_it_dies_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    with running(FAMILY, lines=3) as (process, pids):
        seen = family_of

        def look(pid: int, strays: Iterable[int] = ()) -> tuple[dict[int, ProcessEntry], bool]:
            family, complete = seen(pid, strays)
            looks.append(len(family))
            return (family, complete) if len(looks) > 1 else ({}, False)

        monkeypatch.setattr(proctree, "family_of", look)
        assert await kill_family(process.pid, None, timeout_s=5)
        assert looks[:2] == [2, 2]
        assert all(is_gone(pid) for pid in pids)


@pytest.mark.asyncio
async def test_killing_a_family_looks_at_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> dict[int, ProcessEntry]:
        raise AssertionError("looked through all processes")

    monkeypatch.setattr(proctree, "process_table", refuse)
    with running(FAMILY, lines=3) as (process, pids):
        assert await kill_family(process.pid, None, timeout_s=5)
        assert all(is_gone(pid) for pid in pids)


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


def test_what_runs_below_its_parent_is_no_orphan_though_its_name_is_told() -> None:
    word = f"word-{os.getpid()}"
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]])\n"
        "print(child.pid, flush=True); child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, word], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert [entry.pid for entry in orphans_naming(word)] == [parent.pid], "ours, and no deeper"
        assert orphans_naming(f"{word}-other") == []
    finally:
        os.kill(child, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
