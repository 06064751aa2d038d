"""With monitors that are shell scripts; the real one is in tests/integration/oci."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim.errors import (
    ConfigError,
    DeadlineError,
    InvalidArgumentError,
    MonitorError,
    RuntimeCommandError,
)
from cri_shim.host.pidfd import start_time_ticks
from cri_shim.host.process import Reaper
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.command_lines import run_arguments
from cri_shim.oci.conmon import MonitorRequest, Monitors
from cri_shim.oci.runtime import HandlerSettings
from cri_shim.oci.waiting_monitor import Monitored, MonitorIdentity
from tests.fakes.clock import block_until, until
from tests.harness.monitors import create_monitored

if TYPE_CHECKING:
    from collections.abc import Callable

ID = "c0ffee" * 8
REPORT = "/proc/self/fd/$_OCI_SYNCPIPE"
AWAIT_START = "cat /proc/self/fd/$_OCI_STARTPIPE >/dev/null\n"


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """With room for conmon's sockets."""
    return short_path


def _create(
    top: Path,
    script: str,
    *,
    timeout_s: float = 5.0,
    on_spawn: Callable[[MonitorIdentity], None] = lambda _: None,
    on_made: Callable[[Monitors], None] = lambda _: None,
    **changes: Any,
) -> Monitored:
    conmon = top / "conmon"
    conmon.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    conmon.chmod(0o755)
    (top / "attach").mkdir(exist_ok=True)

    async def main() -> Monitored:
        reaper = Reaper()
        reaper.open()
        try:
            monitors = Monitors(
                reaper, str(conmon), exits_dir=top / "exits", socket_dir=top / "attach"
            )
            on_made(monitors)
            runtime = CliRuntime(
                HandlerSettings("fake", "true", top / "root", args=("--debug",), env={"K": "v"}),
                reaper,
                timeout_s=5,
            )
            facts: dict[str, Any] = {
                "container_id": ID,
                "bundle_dir": top / "bundle",
                "pid_file": top / "pid",
                "persist_dir": top,
                "log_file": top / "0.log",
            }
            return await create_monitored(
                monitors,
                MonitorRequest(**(facts | changes)),
                runtime,
                timeout_s=timeout_s,
                on_spawn=on_spawn,
            )
        finally:
            reaper.close()

    return asyncio.run(main())


def test_reported_pid_is_the_containers(tmp_path: Path) -> None:
    seen: list[MonitorIdentity] = []

    created = _create(
        tmp_path, AWAIT_START + f"echo '{{\"pid\": 4321}}' > {REPORT}", on_spawn=seen.append
    )

    assert created.container_pid == 4321
    assert seen == [created.monitor]
    assert created.monitor.start_time_ticks > 0


def test_monitor_waits_until_it_is_recorded(tmp_path: Path) -> None:
    marks: list[bool] = []

    _create(
        tmp_path,
        AWAIT_START + f"touch {tmp_path}/began; echo '{{\"pid\": 1}}' > {REPORT}",
        on_spawn=lambda _: marks.append((tmp_path / "began").exists()),
    )

    assert marks == [False]
    assert (tmp_path / "began").exists()


def test_monitor_whose_record_fails_never_begins(tmp_path: Path) -> None:
    def on_spawn(_: MonitorIdentity) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _create(tmp_path, AWAIT_START + f"touch {tmp_path}/began", on_spawn=on_spawn)

    assert not (tmp_path / "began").exists()


def test_refusal_carries_the_runtimes_own_words(tmp_path: Path) -> None:
    report = r'{"pid": -1, "message": "time=\"x\" level=error msg=\"no such \\\"file\\\"\"\n"}'

    with pytest.raises(RuntimeCommandError) as caught:
        _create(tmp_path, f"cat > {REPORT} <<'END'\n{report}\nEND\nexit 1")

    assert str(caught.value).startswith(f"creating container {ID} (runtime handler 'fake'): ")
    assert str(caught.value).endswith('true failed: no such "file"')


def test_report_with_bytes_that_are_no_json_is_understood(tmp_path: Path) -> None:
    script = (
        f"""printf '{{"pid": -1, "message": "bad \\377 and \\037 end"}}\\n' > {REPORT}; exit 1"""
    )

    with pytest.raises(RuntimeCommandError, match="bad \ufffd and   end"):
        _create(tmp_path, script)


@pytest.mark.parametrize("report", ["garbage", '{"pid": "x"}', '{"pid": 0', "[]"])
def test_garbage_is_the_monitors_failure(tmp_path: Path, report: str) -> None:
    with pytest.raises(MonitorError, match="sent a report that can't be parsed"):
        _create(tmp_path, f"echo '{report}' > {REPORT}; exec sleep 60")


def test_endless_report_is_cut_and_its_monitor_stopped(tmp_path: Path) -> None:
    seen: list[MonitorIdentity] = []

    with pytest.raises(MonitorError, match="sent a report that can't be parsed"):
        _create(tmp_path, f"exec cat /dev/zero > {REPORT}", on_spawn=seen.append)

    assert start_time_ticks(seen[0].pid) is None


def test_monitor_that_dies_without_a_report_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(
        MonitorError, match="exited with status 3 without a report: Failed to open log file"
    ):
        _create(tmp_path, "echo '[conmon:e]: Failed to open log file' >&2; exit 3")


def test_monitor_that_complains_of_its_options_is_quoted(tmp_path: Path) -> None:
    """It does so on its standard output."""
    with pytest.raises(MonitorError, match="without a report: conmon: option parsing failed: what"):
        _create(tmp_path, "echo 'conmon: option parsing failed: what'; exit 1")


def test_monitor_that_never_reports_is_killed_at_the_deadline(tmp_path: Path) -> None:
    seen: list[MonitorIdentity] = []

    with pytest.raises(DeadlineError, match=r"did not report within 0\.2 s"):
        _create(tmp_path, "sleep 60 & exec sleep 60", timeout_s=0.2, on_spawn=seen.append)

    assert start_time_ticks(seen[0].pid) is None


def test_command_line_and_environment_say_all_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    script = (
        f"printf '%s\\n' \"$@\" > {tmp_path}/argv; env > {tmp_path}/env; pwd > {tmp_path}/pwd; "
        f"echo '{{\"pid\": 1}}' > {REPORT}"
    )

    _create(tmp_path, script, stdin=True, terminal=True)

    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv[:5] == ["--sync", "--full-attach", "--no-sync-log", "--cid", ID]
    assert argv[argv.index("--log-path") + 1] == f"k8s-file:{tmp_path}/0.log"
    assert Path(argv[argv.index("--runtime") + 1]).name == "true"
    assert [option for option in argv if option.startswith("--runtime-arg")] == [
        "--runtime-arg=--root",
        f"--runtime-arg={tmp_path}/root",
        "--runtime-arg=--debug",
    ]
    assert argv[-3:] == ["--terminal", "--stdin", "--leave-stdin-open"]
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names - {"PWD", "_", "OLDPWD", "SHLVL"} == {
        "PATH",
        "K",
        "LC_ALL",
        "TMPDIR",
        "_OCI_SYNCPIPE",
        "_OCI_STARTPIPE",
    }
    assert (tmp_path / "pwd").read_text().strip() == str(tmp_path)  # where `oom` falls
    assert os.listdir(tmp_path / "attach") == []


def test_stdin_that_is_used_once_is_not_left_open(tmp_path: Path) -> None:
    script = f"printf '%s\\n' \"$@\" > {tmp_path}/argv; echo '{{\"pid\": 1}}' > {REPORT}"

    _create(tmp_path, script, stdin=True, stdin_once=True, log_file=None)

    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv[-1] == "--stdin"
    assert argv[argv.index("--log-path") + 1] == "none"


@pytest.mark.parametrize("log_file", ["/var/log/a:b.log", "relative.log", "/var/log/a\nb"])
def test_log_path_that_the_monitor_cannot_be_told_is_refused(tmp_path: Path, log_file: str) -> None:
    with pytest.raises(InvalidArgumentError, match="log path"):
        _create(tmp_path, "exit 1", log_file=Path(log_file))


def test_state_directory_too_long_for_sockets_is_refused_at_once() -> None:
    Monitors(Reaper(), "conmon", exits_dir=Path("/x"), socket_dir=Path("/" + "d" * 66))
    with pytest.raises(ConfigError, match="configure a shorter path"):
        Monitors(Reaper(), "conmon", exits_dir=Path("/x"), socket_dir=Path("/" + "d" * 90))


def await_arguments(pid: int) -> None:
    """A program has its arguments a moment after its start."""
    block_until(Path(f"/proc/{pid}/cmdline").read_bytes)


def test_unrecorded_monitors_are_found_by_their_command_line(tmp_path: Path) -> None:
    found: list[dict[str, list[MonitorIdentity]]] = []
    seen: list[MonitorIdentity] = []

    def on_spawn(monitor: MonitorIdentity) -> None:
        monitors = Monitors(
            Reaper(), "x", exits_dir=tmp_path / "exits", socket_dir=tmp_path / "attach"
        )
        others = Monitors(Reaper(), "x", exits_dir=tmp_path, socket_dir=tmp_path)
        seen.append(monitor)
        await_arguments(monitor.pid)
        found.extend((monitors.find_monitors(), others.find_monitors()))

    _create(tmp_path, AWAIT_START + f"echo '{{\"pid\": 1}}' > {REPORT}", on_spawn=on_spawn)

    assert found == [{ID: seen}, {}]


def test_former_monitors_are_looked_for_once_and_own_ones_are_known(tmp_path: Path) -> None:
    exits = tmp_path / "exits"

    def conmon(container_id: str) -> subprocess.Popen[bytes]:
        words = ["--exit-dir", str(exits), "--cid", container_id]
        started = subprocess.Popen(["sh", "-c", "sleep 60; :", *words], start_new_session=True)
        await_arguments(started.pid)
        return started

    def identity(process: subprocess.Popen[bytes]) -> MonitorIdentity:
        return MonitorIdentity(process.pid, start_time_ticks(process.pid) or 0)

    async def look(monitors: Monitors) -> None:
        assert await monitors.monitors_of("former") == [identity(former)]
        assert await monitors.monitors_of("later") == []
        with conmon("later") as later:
            assert list(monitors.find_monitors()) == ["former", "later"]
            assert await monitors.monitors_of("later") == []
            os.killpg(later.pid, signal.SIGKILL)

    with conmon("former") as former:
        monitors = Monitors(Reaper(), "x", exits_dir=exits, socket_dir=tmp_path)
        asyncio.run(look(monitors))
        os.killpg(former.pid, signal.SIGKILL)


def test_a_run_of_a_former_daemon_and_what_forked_from_one_of_ours_are_found(
    tmp_path: Path,
) -> None:
    words = run_arguments("pod", bundle_dir=tmp_path / "b", pid_file=tmp_path / "b" / "pid")

    async def look() -> None:
        reaper = Reaper()
        reaper.open()
        try:
            monitors = Monitors(reaper, "x", exits_dir=tmp_path / "exits", socket_dir=tmp_path)
            others = Monitors(reaper, "x", exits_dir=tmp_path / "y" / "exits", socket_dir=tmp_path)
            assert await monitors.monitors_of("pod") == []
            # It forks, as crun does, and ends; what it has forked is nobody's child but ours.
            done = await reaper.run(
                ["sh", "-c", "setsid sh -c 'sleep 60; :' \"$@\" & :", "x", "x", *words],
                timeout_s=20,
            )
            assert done.ok
            [orphan] = [
                pid
                for pid in reaper.orphans()
                if str(tmp_path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            await until(lambda: b"setsid" not in Path(f"/proc/{orphan}/cmdline").read_bytes())
            [found] = await monitors.monitors_of("pod")
            assert found == MonitorIdentity(orphan, start_time_ticks(orphan) or 0)
            assert monitors.find_monitors() == {"pod": [found]}
            assert await monitors.monitors_of("another") == []
            assert await others.monitors_of("pod") == []
            os.killpg(orphan, signal.SIGKILL)
        finally:
            reaper.close()

    asyncio.run(look())


def test_a_monitor_that_was_started_here_is_known_until_its_container_is_forgotten(
    tmp_path: Path,
) -> None:
    seen: list[MonitorIdentity] = []
    made: list[Monitors] = []
    _create(
        tmp_path,
        AWAIT_START + f"echo '{{\"pid\": 1}}' > {REPORT}",
        on_spawn=seen.append,
        on_made=made.append,
    )
    [monitors] = made
    [identity] = seen
    with suppress(ChildProcessError):  # running on, it would be found by its command line
        os.waitpid(identity.pid, 0)
    assert asyncio.run(monitors.monitors_of(ID)) == seen
    monitors.discard(ID)
    assert asyncio.run(monitors.monitors_of(ID)) == []
