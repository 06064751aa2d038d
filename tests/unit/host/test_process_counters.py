"""Processes and their open files, counted within bounds."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim.host import process_counters as module
from cri_shim.host.process_counters import ProcessCounters, open_files_limit, process_counters

if TYPE_CHECKING:
    from pathlib import Path


class Node:
    """A cgroup and a /proc."""

    def __init__(self, base: Path) -> None:
        self.cgroup = base / "cgroup"
        self.proc = base / "proc"
        self.proc.mkdir()

    def cgroup_of(self, name: str, *pids: int) -> None:
        directory = self.cgroup / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))

    def process(self, pid: int, *files: str) -> None:
        (self.proc / str(pid) / "fd").mkdir(parents=True)
        for number, target in enumerate(files):
            (self.proc / str(pid) / "fd" / str(number)).symlink_to(target)

    def count(self) -> ProcessCounters:
        return process_counters(str(self.cgroup), str(self.proc))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_processes_below_count_as_well(node: Node) -> None:
    node.cgroup_of("", 7)
    node.cgroup_of("inner/deeper", 8, 9)
    node.process(7, "/dev/null", "socket:[1]")
    node.process(8, "socket:[2]", "socket:[3]", "pipe:[4]")
    assert node.count() == ProcessCounters(processes=3, open_files=5, sockets=3)


def test_a_cgroup_that_is_gone_has_none(node: Node) -> None:
    assert node.count() == ProcessCounters(0, 0, 0)
    node.cgroup.write_text("no directory")
    assert node.count() == ProcessCounters(0, 0, 0)


def test_a_crowd_is_looked_at_in_part(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROCESSES", 3)
    monkeypatch.setattr(module, "MAX_FILES", 5)
    node.cgroup_of("", *range(1, 9))
    for pid in range(1, 9):
        node.process(pid, "socket:[1]")
    assert node.count() == ProcessCounters(processes=8, open_files=3, sockets=3)
    node.cgroup_of("", 20, 21)
    for pid in (20, 21):
        node.process(pid, *["socket:[1]"] * 9)
    assert node.count() == ProcessCounters(processes=2, open_files=5, sockets=5)


def test_a_crowd_of_cgroups_is_looked_at_in_part(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CGROUPS", 4)
    for number in range(9):
        node.cgroup_of(f"inner{number}", number + 1)
    assert node.count().processes == 3


def test_this_process_has_what_it_opened(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    before = process_counters(str(tmp_path))
    with socket.socket(), socket.socket():
        after = process_counters(str(tmp_path))
    assert (after.open_files - before.open_files, after.sockets - before.sockets) == (2, 2)


def test_the_limit_is_the_soft_one(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    limits = tmp_path / "5/limits"
    limits.write_text(
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max processes             unlimited            unlimited            processes \n"
        "Max open files            1024                 524288               files     \n"
    )
    assert open_files_limit(5, str(tmp_path)) == 1024
    limits.write_text("Max open files            unlimited            unlimited            files\n")
    assert open_files_limit(5, str(tmp_path)) is None
    assert open_files_limit(6, str(tmp_path)) is None
    assert open_files_limit(os.getpid()) is not None
