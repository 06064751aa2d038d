"""Processes by number and start: noted, read back, and never mistaken for another."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, cast

from cri_shim.host.port import Host
from cri_shim.host.procstat import process_entry
from cri_shim.sandbox.store.model import Process
from cri_shim.sandbox.store.processes import note_top_process, read_top_process, running

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.paths import ObjectPaths


class Paths:
    """As much of an object's paths as is used."""

    def __init__(self, directory: Path) -> None:
        self.top_process_file = directory / "monitor"


HOST = Host()


def test_what_was_noted_is_read_back_and_garbage_is_nobody(tmp_path: Path) -> None:
    paths = cast("ObjectPaths", Paths(tmp_path))
    assert read_top_process(paths) is None
    note_top_process(paths, Process(12, 345))
    assert read_top_process(paths) == Process(12, 345)
    for garbage in (b"", b"{}", b'{"pid": "x"}', b"\xff" * 9000):
        paths.top_process_file.write_bytes(garbage)
        assert read_top_process(paths) is None


def test_a_number_that_was_given_again_is_not_that_process() -> None:
    here = process_entry(os.getpid())
    assert here is not None
    assert running(HOST, Process(os.getpid(), here.start_ticks))
    assert not running(HOST, Process(os.getpid(), here.start_ticks - 1))
    assert not running(HOST, None)


def test_one_that_has_ended_does_not_run_though_nobody_has_collected_it() -> None:
    child = subprocess.Popen(["sleep", "600"])
    entry = process_entry(child.pid)
    assert entry is not None
    process = Process(child.pid, entry.start_ticks)
    assert running(HOST, process)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not running(HOST, process)
    child.wait()
    assert not running(HOST, process)
