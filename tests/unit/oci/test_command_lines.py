"""Whose container a command works for, told by its words alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri_shim.oci.command_lines import (
    command_line,
    find_commands,
    monitored_by,
    run_arguments,
    started_by,
)

STATE = Path("/run/cri-shim")
EXITS = STATE / "exits"
ID = "c0ffee"


def line(*words: str) -> bytes:
    return b"".join(word.encode() + b"\0" for word in words)


def run_of(state: Path) -> list[str]:
    bundle = state / "sandboxes" / ID
    return run_arguments(ID, bundle_dir=bundle, pid_file=bundle / "pid")


def test_a_run_is_told_whatever_runtime_and_options_stand_before_it() -> None:
    assert started_by(line("/usr/bin/runc", "--root", "/r", "--debug", *run_of(STATE)), STATE) == ID
    assert started_by(line("/bin/sh", "/x/wrapper", *run_of(STATE)), STATE) == ID


@pytest.mark.parametrize(
    "words",
    [
        ["runc", *run_of(Path("/run/other"))],
        ["runc", *run_of(Path("/run/cri-shim-2"))],
        ["runc", *run_of(STATE), "more"],
        ["runc", *run_of(STATE)[1:]],
        ["runc", "exec", "--detach", "--process", f"{STATE}/p", "--pid-file", f"{STATE}/i", ID],
        ["grep", "-r", ID, str(STATE)],
        [],
    ],
)
def test_whatever_else_names_the_state_directory_is_no_run(words: list[str]) -> None:
    assert started_by(line(*words), STATE) is None


def test_a_monitor_is_told_by_the_directory_of_its_exits() -> None:
    words = ["conmon", "--sync", "--cid", ID, "--exit-dir", str(EXITS), "--log-path", "none"]
    assert monitored_by(line(*words), EXITS) == ID
    assert monitored_by(line(*words), Path("/run/cri")) is None
    assert monitored_by(line("conmon", "--exit-dir", str(EXITS), "--cid"), EXITS) is None
    assert monitored_by(line("conmon", "--exit-dir", str(EXITS)), EXITS) is None


def test_only_processes_that_are_there_have_words() -> None:
    assert command_line(os.getpid()).endswith(b"\0")
    assert command_line(2**22) == b""
    assert find_commands(EXITS / "of nobody", STATE / "of nobody") == {}
