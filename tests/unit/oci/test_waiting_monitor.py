"""With monitors that are shell scripts; that real ones wait, tests/integration/oci shows."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import DeadlineError
from cri_shim.host.pidfd import start_time_ticks
from cri_shim.host.process import Reaper
from cri_shim.host.procstat import process_entry
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.conmon import MonitorRequest, Monitors
from cri_shim.oci.runtime import HandlerSettings
from tests.fakes.clock import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cri_shim.oci.waiting_monitor import WaitingMonitor

pytestmark = pytest.mark.asyncio
ID = "c0ffee" * 8
REPORT = "/proc/self/fd/$_OCI_SYNCPIPE"
LOADED = "echo > loaded"
AWAIT_START = "cat /proc/self/fd/$_OCI_STARTPIPE >/dev/null"
CREATES = f"echo >> created; echo '{{\"pid\": 4321}}' > {REPORT}"


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    opened = Reaper()
    opened.open()
    yield opened
    opened.close()


def runs(pid: int) -> bool:
    """A zombie is about to be collected."""
    entry = process_entry(pid)
    return entry is not None and not entry.zombie


async def started(
    reaper: Reaper, top: Path, *script: str, terminal: bool = False
) -> WaitingMonitor:
    """A monitor that has come as far as `LOADED`; its working directory is `top`."""
    conmon = top / "conmon"
    conmon.write_text("#!/bin/sh\n" + "\n".join(script) + "\n")
    conmon.chmod(0o755)
    (top / "attach").mkdir()
    monitors = Monitors(reaper, str(conmon), exits_dir=top / "exits", socket_dir=top / "attach")
    runtime = CliRuntime(HandlerSettings("fake", "true", top / "root"), reaper, timeout_s=5)
    request = MonitorRequest(
        container_id=ID,
        bundle_dir=top / "bundle",
        pid_file=top / "pid",
        persist_dir=top,
        log_file=top / "0.log",
        terminal=terminal,
    )
    monitor = await monitors.start(request, runtime, on_spawn=lambda _: None)
    await until((top / "loaded").exists)
    return monitor


async def test_it_loads_and_creates_nothing_before_the_word(
    reaper: Reaper, short_path: Path
) -> None:
    monitor = await started(reaper, short_path, LOADED, AWAIT_START, CREATES)
    assert monitor.is_waiting
    assert not (short_path / "created").exists()
    monitored = await monitor.create(timeout_s=20)
    assert (monitored.monitor, monitored.container_pid) == (monitor.identity, 4321)
    assert not monitor.is_waiting


async def test_ended_it_never_creates_anything_and_leaves_nothing(
    reaper: Reaper, short_path: Path
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    monitor = await started(reaper, short_path, LOADED, AWAIT_START, CREATES, terminal=True)
    assert os.listdir(short_path / "attach") == [ID[:12]]
    await monitor.end()
    assert not runs(monitor.identity.pid)
    assert not (short_path / "created").exists()
    assert os.listdir(short_path / "attach") == []
    assert set(os.listdir("/proc/self/fd")) <= before
    await monitor.end()


async def test_ending_one_that_has_created_leaves_it_alone(
    reaper: Reaper, short_path: Path
) -> None:
    monitor = await started(reaper, short_path, LOADED, AWAIT_START, CREATES, "exec sleep 60")
    await monitor.create(timeout_s=20)
    await monitor.end()
    assert start_time_ticks(monitor.identity.pid) == monitor.identity.start_time_ticks
    os.killpg(monitor.identity.pid, 9)


async def test_what_it_has_started_dies_with_it_at_the_deadline(
    reaper: Reaper, short_path: Path
) -> None:
    monitor = await started(
        *(reaper, short_path, LOADED, AWAIT_START),
        *("sleep 60 & echo $! > below.unfinished", "mv below.unfinished below", "exec sleep 60"),
    )
    creating = asyncio.ensure_future(monitor.create(timeout_s=1))
    await until((short_path / "below").exists)
    with pytest.raises(DeadlineError, match="did not report within 1 s"):
        await creating
    below = int((short_path / "below").read_text())
    assert not runs(monitor.identity.pid)
    assert not runs(below)


async def test_one_whose_creation_is_cancelled_is_gone(reaper: Reaper, short_path: Path) -> None:
    monitor = await started(reaper, short_path, LOADED, AWAIT_START, "exec sleep 60")
    creating = asyncio.ensure_future(monitor.create(timeout_s=60))
    await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert not runs(monitor.identity.pid)
