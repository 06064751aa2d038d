"""The child that makes user namespaces, where it fails; the namespaces themselves need root."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import CommandError, DeadlineError
from cri_shim.host import userns
from cri_shim.host.files import fd_path
from cri_shim.host.process import Reaper
from cri_shim.host.procstat import process_entry
from cri_shim.host.userns import new_user_namespace, open_user_namespace
from tests.fakes.clock import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakes.clock import MovableClock


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    descriptors = set(os.listdir("/proc/self/fd"))
    opened = Reaper()
    opened.open()
    yield opened
    opened.close()
    assert set(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture
def unshare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that is run, for the test to write."""
    file = tmp_path / "unshare"
    file.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return file


async def make(reaper: Reaper) -> None:
    async with new_user_namespace(
        reaper, uid_map="0 0 1", gid_map="0 0 1", with_network=True
    ) as made:
        assert made.netns_fd is not None


@pytest.mark.asyncio
async def test_the_kernels_words_are_told(reaper: Reaper, unshare: Path) -> None:
    unshare.write_text("#!/bin/sh\necho unshare failed: No space left on device >&2\nexit 1\n")
    with pytest.raises(CommandError, match=r"exited with status 1: .*No space left on device"):
        await make(reaper)


@pytest.mark.asyncio
async def test_mappings_that_are_refused_are_told(reaper: Reaper, unshare: Path) -> None:
    unshare.write_text("#!/bin/sh\nexec cat\n")  # in our own namespace, which has its mappings
    with pytest.raises(CommandError, match="the kernel rejected '0 0 1'"):
        await make(reaper)


@pytest.mark.asyncio
async def test_a_child_that_hangs_is_killed(
    reaper: Reaper, unshare: Path, clock: MovableClock
) -> None:
    unshare.write_text(f"#!/bin/sh\necho $$ > {unshare}.pid\nexec sleep 600\n")
    making, pid_file = asyncio.ensure_future(make(reaper)), unshare.parent / "unshare.pid"
    await until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
    clock.move(userns.TIMEOUT_S)
    with pytest.raises(DeadlineError, match="unshare did not create a user namespace"):
        await making
    pid = int(pid_file.read_text())
    entry = process_entry(pid)
    assert entry is None or entry.zombie


@pytest.mark.asyncio
async def test_a_program_that_is_not_there_is_told(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="unshare could not be run"):
        await make(reaper)


def test_a_living_process_has_a_user_namespace_and_ours_can_be_named() -> None:
    fd = open_user_namespace(os.getpid())
    assert fd is not None
    try:
        assert os.readlink(fd_path(fd)) == os.readlink("/proc/self/ns/user")
    finally:
        os.close(fd)
