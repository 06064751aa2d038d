"""Ending execs in a guest: what kills them there, and the signals that are left where that can't be run."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim.host.pidfd import start_time_ticks
from cri_shim.oci import guest_exec
from cri_shim.oci.guest_exec import killer_of, mark, standing_for

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = Path("/x/exec/0123456789abcdef.json")
PROCESS: dict[str, Any] = {
    "args": ["work"],
    "env": ["A=1", mark(FILE)],
    "user": {"uid": 7},
    "cwd": "/",
    "terminal": True,
    "consoleSize": {"height": 1, "width": 1},
}
DEAF = """
import signal, sys, time
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell and what it has started, all of which have a mark; they ignore SIGTERM."""
    env = {"PATH": "/usr/bin:/bin", guest_exec.VARIABLE: tmp_path.name}
    script = "trap '' TERM; sleep 600 & echo $!; exec sleep 600"
    with subprocess.Popen(["sh", "-c", script], env=env, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_the_killer_is_the_same_user_without_the_mark_and_without_a_terminal() -> None:
    killer = killer_of(PROCESS, mark(FILE))
    assert (killer["user"], killer["env"], killer["cwd"]) == ({"uid": 7}, ["A=1"], "/")
    assert killer["args"][-1] == mark(FILE) == "CRI_SHIM_EXEC=0123456789abcdef"
    assert killer["terminal"] is False
    assert "consoleSize" not in killer
    assert PROCESS["args"] == ["work"]


def test_the_killer_kills_what_has_the_mark_with_its_descendants_and_nothing_else(
    family: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert family.stdout is not None
    child = int(family.stdout.readline())
    with subprocess.Popen(["sleep", "600"], env={guest_exec.VARIABLE: "another"}) as other:
        killer = killer_of(PROCESS, mark(tmp_path))
        assert subprocess.run(killer["args"], env={}, check=False).returncode == 0
        assert family.wait(10) == -signal.SIGKILL
        assert family.stdout.read() == b"", "the child has closed its end"
        assert start_time_ticks(child) is None or zombie(child)
        assert other.poll() is None
        other.kill()


def zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("ignored", "by"),
    [
        ((), signal.SIGTERM),
        (("SIGTERM",), signal.SIGHUP),
        (("SIGTERM", "SIGHUP", "SIGINT"), signal.SIGXCPU),
    ],
)
def test_one_signal_after_the_other_is_tried(
    ignored: tuple[str, ...], by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = tuple((number, 0.2) for number, _ in guest_exec.LAST_SIGNALS)
    monkeypatch.setattr(guest_exec, "LAST_SIGNALS", quick)
    argv = [sys.executable, "-SE", "-c", DEAF, *ignored]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        async def end() -> bool:
            return await guest_exec.end_by_signals(await standing_for(process.pid))

        assert asyncio.run(end())
        assert process.wait(10) == -by


def test_what_ignores_them_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tuple((number, 0.05) for number, _ in guest_exec.LAST_SIGNALS)
    monkeypatch.setattr(guest_exec, "LAST_SIGNALS", quick)
    argv = [sys.executable, "-SE", "-c", DEAF]
    argv += [number.name for number, _ in guest_exec.LAST_SIGNALS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        standing = [(process.pid, start_time_ticks(process.pid) or 0)]
        assert not asyncio.run(guest_exec.end_by_signals(standing))
        process.kill()


def test_what_stands_for_an_exec_is_what_its_command_waits_for_or_itself() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert [pid for pid, _ in asyncio.run(standing_for(process.pid))] == [child]
        assert [pid for pid, _ in asyncio.run(standing_for(child))] == [child]
        os.kill(child, signal.SIGKILL)
    assert asyncio.run(standing_for(process.pid)) == []
