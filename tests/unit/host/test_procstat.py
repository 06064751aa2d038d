"""A row of the process table, whatever a process calls itself."""

from __future__ import annotations

import os

import pytest

from cri_shim.host.procstat import (
    ProcessEntry,
    parse_stat,
    pid_namespace_depth,
    process_entry,
)


@pytest.mark.parametrize("name", ["sh", "a b", "a) R 1 (b", ")", "", "((", "ü"])
def test_a_row_is_read_whatever_the_process_calls_itself(name: str) -> None:
    fields = ["S", "7", "8", "9", *("0" for _ in range(15)), "4242", "1", "2"]
    line = f"12 ({name}) {' '.join(fields)}"
    assert parse_stat(line.encode()) == ProcessEntry(12, 7, 9, 4242, False)


@pytest.mark.parametrize(
    ("state", "zombie"), [("Z", True), ("X", True), ("R", False), ("T", False)]
)
def test_only_the_dead_are_zombies(state: str, *, zombie: bool) -> None:
    fields = [state, "7", "8", "9", *("0" for _ in range(15)), "4242"]
    assert parse_stat(f"12 (sh) {' '.join(fields)}".encode()).zombie is zombie


def test_this_very_process_is_read_and_one_that_is_not_there_is_none() -> None:
    me = process_entry(os.getpid())
    assert me is not None
    assert (me.parent_pid, me.session) == (os.getppid(), os.getsid(0))
    assert process_entry(2**22 + 1) is None


def test_a_process_beside_us_is_in_no_deeper_pid_namespace() -> None:
    assert pid_namespace_depth(os.getpid()) == 0
    assert pid_namespace_depth(1) == 0
    assert pid_namespace_depth(2**22 + 1) is None
