from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.audited_daemon import what_is_looked_at
from tests.harness.daemon import CHECKOUT

LOOKS = """
import asyncio, os, sys
from pathlib import Path
from tests.harness.audited_daemon import arm
arm(Path(sys.argv[1]))
os.listdir("/proc")
Path("/proc/self/mountinfo").read_bytes()
os.listdir(f"/proc/{os.getpid()}/task")
asyncio.run(asyncio.sleep(0.001))
asyncio.run(asyncio.sleep(0))
"""


@pytest.mark.parametrize(
    ("event", "path", "found"),
    [
        ("os.listdir", "/proc", "processes"),
        ("os.scandir", b"/proc/", "processes"),
        ("os.scandir", Path("/proc"), "processes"),
        ("os.listdir", "/proc/12/task", None),
        ("open", "/proc/12/stat", None),
        ("open", "/proc/self/mountinfo", "mounts"),
        ("open", Path("/proc/thread-self/mounts"), "mounts"),
        ("open", "/etc/mounts", None),
        ("os.listdir", 7, None),
        ("os.listdir", None, None),
        ("os.remove", "/proc", None),
    ],
)
def test_looks_at_everything_are_told_from_looks_at_one_object(
    event: str, path: object, found: str | None
) -> None:
    assert what_is_looked_at(event, (path,)) == found


def test_a_process_that_is_watched_writes_down_what_it_does(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    subprocess.run([sys.executable, "-c", LOOKS, str(log)], check=True, cwd=CHECKOUT)
    assert [line.split()[0] for line in log.read_text().splitlines()] == [
        *("processes", "mounts", "sleep")
    ]
