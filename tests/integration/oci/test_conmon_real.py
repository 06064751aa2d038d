from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import (
    DeadlineError,
    MonitorError,
    RuntimeCommandError,
    WrongStateError,
)
from cri_shim.host.inotify import IN_MOVED_TO, DirectoryWatch
from cri_shim.host.pidfd import start_time_ticks
from cri_shim.host.process import Reaper
from cri_shim.host.procstat import process_entry
from cri_shim.oci.conmon import Monitors
from tests.harness.monitors import create_monitored
from tests.integration.oci.conftest import until

if TYPE_CHECKING:
    from cri_shim.oci.waiting_monitor import MonitorIdentity
    from tests.integration.oci.conftest import Host

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]


async def test_container_is_created_started_logged_and_its_exit_code_left(host: Host) -> None:
    made = host.bundle("sh", "-c", "echo out; echo err >&2; exit 7")

    monitored = await host.create(made)
    assert host.cgroups.cgroup_of(monitored.container_pid) == made.cgroup
    await host.runtime.start(made.container_id, made.dir)

    assert await host.exit_code(made) == 7
    lines = await host.logged(made, 2)
    assert {(stream, tag, text) for _, stream, tag, text in lines} == {
        ("stdout", "F", "out"),
        ("stderr", "F", "err"),
    }
    for stamp, *_ in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d)", stamp)
    await host.runtime.delete(made.container_id)


async def test_monitor_is_recorded_before_it_may_do_anything(host: Host) -> None:
    made = host.bundle("sleep", "60")
    seen: list[tuple[MonitorIdentity, bool]] = []

    def on_spawn(monitor: MonitorIdentity) -> None:
        time.sleep(0.2)  # long enough for a monitor that doesn't wait
        seen.append((monitor, made.pid_file.exists() or made.log_file.exists()))

    monitored = await create_monitored(
        host.monitors, made.request(log_file=None), host.runtime, timeout_s=30, on_spawn=on_spawn
    )

    assert seen == [(monitored.monitor, False)]
    assert start_time_ticks(monitored.monitor.pid) == monitored.monitor.start_time_ticks
    assert host.monitors.find_monitors() == {made.container_id: [monitored.monitor]}


async def test_record_that_cannot_be_written_stops_the_creation(host: Host) -> None:
    made = host.bundle("sleep", "60")

    def on_spawn(_: MonitorIdentity) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await create_monitored(
            host.monitors, made.request(), host.runtime, timeout_s=30, on_spawn=on_spawn
        )

    assert not made.pid_file.exists()
    assert await host.runtime.state(made.container_id) is None
    assert host.monitors.find_monitors() == {}


async def test_exit_file_arrives_by_rename_and_whole(host: Host) -> None:
    made = host.bundle("sh", "-c", "exit 42")
    await host.create(made)
    arrived: list[tuple[str | None, bytes]] = []

    def on_arrival(name: str | None) -> None:
        arrived.append((name, (host.exits_dir / made.container_id).read_bytes()))

    watch = DirectoryWatch(host.exits_dir, IN_MOVED_TO, on_arrival)
    try:
        await host.runtime.start(made.container_id, made.dir)
        await until(lambda: arrived)
    finally:
        watch.close()

    assert arrived == [(made.container_id, b"42")]


async def test_killed_container_exits_with_128_and_the_signal(host: Host) -> None:
    made = host.bundle("sleep", "60")
    await host.create(made)
    await host.runtime.start(made.container_id, made.dir)

    assert await host.runtime.kill(made.container_id, signal.SIGKILL)

    assert await host.exit_code(made) == 137


async def test_oom_leaves_its_mark_and_the_kernel_counts_it(host: Host) -> None:
    made = host.bundle("tail", "/dev/zero", memory_limit=16 << 20)
    await host.create(made)
    await host.runtime.start(made.container_id, made.dir)

    assert await host.exit_code(made) == 137
    assert (made.persist_dir / "oom").exists()
    assert host.cgroups.oom_kills(made.cgroup) == 1


async def test_container_that_was_not_short_of_memory_has_no_mark(host: Host) -> None:
    made = host.bundle("true", memory_limit=64 << 20)
    await host.create(made)
    await host.runtime.start(made.container_id, made.dir)

    assert await host.exit_code(made) == 0
    assert not (made.persist_dir / "oom").exists()
    assert host.cgroups.oom_kills(made.cgroup) == 0


async def test_program_that_is_missing_is_said_in_the_runtimes_words(host: Host) -> None:
    made = host.bundle("/no/such/program")

    with pytest.raises(RuntimeCommandError) as caught:
        await host.create(made)

    message = str(caught.value)
    assert message.startswith(f"creating container {made.container_id} (runtime handler 'runc'): ")
    assert '"/no/such/program": stat /no/such/program: no such file or directory' in message
    assert "level=error" not in message
    assert host.monitors.find_monitors() == {}


async def test_broken_bundle_is_said_in_the_runtimes_words(host: Host) -> None:
    made = host.bundle("true")
    (made.dir / "config.json").write_text("{", encoding="ascii")

    with pytest.raises(RuntimeCommandError, match="unexpected EOF"):
        await host.create(made)


async def test_crun_either_works_or_says_why_it_cannot_here(host: Host) -> None:
    crun = host.runtime_of("crun")
    made = host.bundle("true")

    try:
        await create_monitored(
            host.monitors, made.request(), crun, timeout_s=30, on_spawn=host.spawned.append
        )
    except RuntimeCommandError as error:
        assert "cgroup" in str(error)  # noqa: PT017 - which of the two depends on the node
    else:
        await crun.start(made.container_id, made.dir)
        assert await host.exit_code(made) == 0
    await crun.delete(made.container_id, force=True)


async def test_missing_log_directory_is_the_monitors_complaint(host: Host) -> None:
    made = host.bundle("true")

    with pytest.raises(MonitorError, match="Failed to open log file No such file or directory"):
        await host.create(made, log_file=host.top / "none/0.log")


async def test_missing_monitor_is_said_clearly(host: Host) -> None:
    monitors = Monitors(
        host.reaper, "conmon-not-here", exits_dir=host.exits_dir, socket_dir=host.top / "attach"
    )

    with pytest.raises(MonitorError, match="conmon-not-here was not found: install it"):
        await create_monitored(
            monitors,
            host.bundle("true").request(),
            host.runtime,
            timeout_s=5,
            on_spawn=host.spawned.append,
        )


async def test_missing_runtime_is_said_clearly(host: Host) -> None:
    gone = host.runtime_of("runc-not-here")

    with pytest.raises(RuntimeCommandError, match=r"set runtime\.handlers\.runc-not-here\.path"):
        await create_monitored(
            host.monitors,
            host.bundle("true").request(),
            gone,
            timeout_s=5,
            on_spawn=host.spawned.append,
        )


async def test_runtime_that_hangs_is_stopped_at_the_deadline(host: Host, tmp_path: Path) -> None:
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\necho $$ > $(dirname $0)/hanging.pid\nexec sleep 60\n")
    hanging.chmod(0o755)
    made = host.bundle("true")

    with pytest.raises(DeadlineError, match=r"did not report within 0\.5 s"):
        await create_monitored(
            host.monitors,
            made.request(),
            host.runtime_of(str(hanging), name="hanging"),
            timeout_s=0.5,
            on_spawn=host.spawned.append,
        )

    pid = int((tmp_path / "hanging.pid").read_text())
    entry = process_entry(pid)
    assert entry is None or entry.zombie
    assert host.monitors.find_monitors() == {}


async def test_cancelled_creation_leaves_no_monitor(host: Host) -> None:
    made = host.bundle("sleep", "60")
    task = asyncio.create_task(host.create(made))
    await until(lambda: host.spawned)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert host.monitors.find_monitors() == {}


async def test_runtime_that_fails_without_a_word_is_reported(host: Host, tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexit 3\n")
    mute.chmod(0o755)

    with pytest.raises(MonitorError, match="neither conmon nor the OCI runtime gave a reason"):
        await create_monitored(
            host.monitors,
            host.bundle("true").request(),
            host.runtime_of(str(mute), name="mute"),
            timeout_s=5,
            on_spawn=host.spawned.append,
        )


async def test_terminal_is_handed_over_and_its_socket_removed(host: Host) -> None:
    made = host.bundle("sh", "-c", "test -t 0 && echo a terminal", terminal=True)

    await host.create(made, terminal=True, stdin=True)
    await host.runtime.start(made.container_id, made.dir)

    assert await host.exit_code(made) == 0
    assert (await host.logged(made))[0][3].strip() == "a terminal"
    assert os.listdir(host.top / "attach") == []


async def test_log_is_reopened_under_its_name(host: Host) -> None:
    made = host.bundle("sh", "-c", "while :; do echo tick; sleep 0.02; done")
    await host.create(made)
    await host.runtime.start(made.container_id, made.dir)
    await host.logged(made)
    for turn in range(3):
        made.log_file.rename(made.dir / f"old.{turn}")
        await host.monitors.reopen_log(made.dir, made.log_file)
        assert made.log_file.exists()
        assert (await host.logged(made))[0][3] == "tick"


async def test_log_of_a_dead_monitor_cannot_be_reopened(host: Host) -> None:
    made = host.bundle("true")
    await host.create(made)
    await host.runtime.start(made.container_id, made.dir)
    await host.exit_code(made)
    await until(lambda: not host.monitors.find_monitors())

    with pytest.raises(WrongStateError, match="monitor has exited"):
        await host.monitors.reopen_log(made.dir, made.log_file)


async def test_stuck_monitor_lets_reopening_end_at_its_deadline(host: Host) -> None:
    made = host.bundle("sleep", "60")
    monitored = await host.create(made)
    os.kill(monitored.monitor.pid, signal.SIGSTOP)
    try:
        for _ in range(2):  # the second finds the first one's line still unread
            with pytest.raises(DeadlineError, match="the container's monitor"):
                await host.monitors.reopen_log(made.dir, made.log_file, timeout_s=0.05)
    finally:
        os.kill(monitored.monitor.pid, signal.SIGCONT)


async def test_monitor_and_container_go_on_when_their_daemon_is_killed(host: Host) -> None:
    made = host.bundle("sh", "-c", "sleep 0.3; echo still here; exit 5")
    script = f"""
import asyncio, os, signal
from pathlib import Path
from cri_shim.host.process import Reaper
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.conmon import MonitorRequest, Monitors
from cri_shim.oci.runtime import HandlerSettings

async def main():
    reaper = Reaper()
    reaper.open()
    top, made = Path({str(host.top)!r}), Path({str(made.dir)!r})
    runtime = CliRuntime(
        HandlerSettings("runc", "runc", top / "runtime-runc"), reaper, timeout_s=30
    )
    monitors = Monitors(reaper, "conmon", exits_dir=top / "exits", socket_dir=top / "attach")
    request = MonitorRequest(
        container_id={made.container_id!r}, bundle_dir=made, pid_file=made / "pid",
        persist_dir=made / "persist", log_file=made / "0.log",
    )
    waiting = await monitors.start(request, runtime, on_spawn=lambda _: None)
    await waiting.create(timeout_s=30)
    await runtime.start({made.container_id!r}, made)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    done = await host.reaper.run(
        [sys.executable, "-c", script], timeout_s=30, env={**os.environ, "LC_ALL": "C"}
    )

    assert done.ending.signal == signal.SIGKILL, done.stderr_tail
    assert list(host.monitors.find_monitors()) == [made.container_id]
    assert await host.exit_code(made) == 5
    assert (await host.logged(made))[0][3] == "still here"


async def test_init_of_a_killed_monitor_becomes_a_child_of_the_daemon(host: Host) -> None:
    made = host.bundle("sleep", "60")
    monitored = await host.create(made)
    await host.runtime.start(made.container_id, made.dir)

    os.kill(monitored.monitor.pid, signal.SIGKILL)
    await until(lambda: start_time_ticks(monitored.monitor.pid) is None)
    orphan = host.reaper.claim(monitored.container_pid)

    assert orphan is not None
    assert await host.runtime.kill(made.container_id, signal.SIGTERM, all_processes=True)
    assert await host.runtime.kill(made.container_id, signal.SIGKILL)
    assert (await orphan.wait()).exit_code == 137
    assert not (host.exits_dir / made.container_id).exists()


async def test_bundle_path_may_be_longer_than_a_socket_address(host: Host) -> None:
    made = host.bundle("sleep", "60")
    long_dir = host.top / ("d" * 120)
    made.dir.rename(long_dir)
    made.dir = long_dir

    await host.create(made)

    assert (long_dir / "attach").is_socket()


async def test_monitor_version_is_a_number() -> None:
    reaper = Reaper()
    reaper.open()
    try:
        monitors = Monitors(reaper, "conmon", exits_dir=Path("/x"), socket_dir=Path("/y"))
        assert re.fullmatch(r"\d+\.\d+\.\d+", await monitors.version())
    finally:
        reaper.close()
